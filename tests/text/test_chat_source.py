"""Where the chat template of a model is found, and what is said when it cannot be used."""

import json
import os
from pathlib import Path

import pytest

from tiercel import eyas
from tiercel.text.chat import ChatTemplate
from tiercel.text.chat_source import find_template

FILES = ("chat_template.json", "tokenizer_config.json", "processor_config.json")


def write(folder: Path, name: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")


def found(folder: Path, name: str = "", config: Path | None = None) -> str | None:
    source = find_template(folder, name, config)
    return None if source is None else source.text


def test_the_order_of_the_files(tmp_path: Path) -> None:
    for name in FILES:
        write(tmp_path, name, {"chat_template": name})
    write(tmp_path, "chat_template.jinja", "chat_template.jinja")
    order = ("chat_template.json", "tokenizer_config.json", "chat_template.jinja", FILES[2])
    for name in order:
        assert found(tmp_path) == name
        (tmp_path / name).unlink()
    assert found(tmp_path) is None


def test_another_tokenizer_config(tmp_path: Path) -> None:
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}
    write(tmp_path, "tokenizer_config.json", {"chat_template": "no", "bos_token": "no"})
    write(tmp_path, "mine.json", {"chat_template": "yes", **tokens})
    source = find_template(tmp_path, "", tmp_path / "mine.json")
    assert source is not None
    assert source.text == "yes"
    assert source.variables == {"bos_token": "<s>", "eos_token": "</s>"}
    assert source.origin.endswith("mine.json")


@pytest.mark.parametrize(
    "value",
    [
        [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}],
        {"rag": "no", "default": "yes"},
        "yes",
    ],
)
def test_of_several_templates_the_default(tmp_path: Path, value: object) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": value})
    assert found(tmp_path) == "yes"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([{"name": "rag", "template": "x"}], "none of its chat templates is called `default`"),
        (7, "a JSON int, expected text"),
        ("x" * 1_000_001, "more than 1000000 characters"),
    ],
)
def test_an_unusable_template_is_a_warning_with_the_file(
    tmp_path: Path, value: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": value})
    assert not ChatTemplate.load(tmp_path).available
    assert reason in caplog.text
    assert "tokenizer_config.json" in caplog.text


def test_a_fifo_in_place_of_a_template_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "chat_template.jinja")
    assert not ChatTemplate.load(tmp_path).available
    assert "chat_template.jinja: is not a regular file" in caplog.text


def test_broken_json_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "chat_template.json", "{")
    assert not ChatTemplate.load(tmp_path).available
    assert "chat_template.json: is not JSON" in caplog.text


@pytest.mark.parametrize(
    "name",
    ["tiiuae/falcon-7b-instruct", "falcon-180B-chat", "x/y-Instruct-v2", "instruct", "my_chat.1"],
)
def test_falcons_own_form_for_chat_models(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    assert find_template(folder, name, None) is not None
    template = ChatTemplate.load(folder, name)
    assert template.available
    assert "\nUser:" in template.default_stops
    assert not template.uses_tools


def test_any_of_three_names_tells(tmp_path: Path) -> None:
    for name in ("falcon-7b", "models/instruction", "chatter", "tiiuae/falcon-40b", ""):
        assert found(tmp_path, name) is None
    write(tmp_path, "config.json", {"_name_or_path": "tiiuae/falcon-40b-instruct"})
    assert found(tmp_path) is not None
    folder = tmp_path / "falcon-instruct"
    folder.mkdir()
    assert found(folder) is not None


def test_the_big_one_calls_itself_falcon(tmp_path: Path) -> None:
    big = found(tmp_path, "tiiuae/falcon-180B-chat") or ""
    small = found(tmp_path, "tiiuae/falcon-40b-instruct") or ""
    assert "Falcon: " in big
    assert "Assistant: " not in big
    assert "Assistant: " in small


def test_the_embedded_model(caplog: pytest.LogCaptureFixture) -> None:
    template = ChatTemplate.load(eyas.path(), "tiercel/eyas")
    assert template.available
    assert not template.uses_tools
    assert template.default_stops[0] == "\nUser:"
    assert not caplog.text
