"""Where a model's chat template comes from: the files of its folder, or Falcon's own form.

Reads files, runs nothing.
"""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiercel.errors import ConfigError
from tiercel.text.files import named_token, read_object, read_text

logger = logging.getLogger(__name__)

MAX_SOURCE_CHARACTERS = 1_000_000
JINJA_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"

# The turns that Falcon-instruct was trained on. Falcon-180B-chat calls itself Falcon in them.
FALCON_TEMPLATE = """\
{%- for message in messages -%}
{%- if not loop.first -%}{{ '\\n\\n' }}{%- endif -%}
{%- if message['role'] == 'system' -%}{{ message['content'] | trim }}
{%- elif message['role'] == 'user' -%}{{ 'User: ' + message['content'] | trim }}
{%- elif message['role'] == 'assistant' -%}{{ 'Assistant: ' + message['content'] | trim }}
{%- else -%}
{{ raise_exception('the roles of this model are system, user and assistant, not '
                   + message['role']) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\n\\nAssistant:' }}{%- endif -%}
"""
_CHAT_NAME = re.compile(r"(?:^|[-_./ ])(?:instruct|chat)(?:$|[-_./ ])", re.IGNORECASE)
_SELF_NAMED = re.compile(r"180b-chat", re.IGNORECASE)


@dataclass(frozen=True)
class TemplateSource:
    """A template as written, and the variables that its model gives to it."""

    text: str
    origin: str  # for people: the file, or what else it is
    variables: dict[str, str] = field(default_factory=dict)


def find_template(folder: Path, name: str, config_path: Path | None) -> TemplateSource | None:
    """The template of a model that its users call `name`; None where it has none.

    Raises ConfigError, naming the file, for one that cannot be read or has none of the forms that
    a template is written in.
    """
    config_file = config_path or folder / TOKENIZER_CONFIG
    config = read_object(config_file)
    variables = _variables(config, read_object(folder / "special_tokens_map.json"))
    # The two that TGI reads come first, so that a model renders here as it did there. transformers
    # prefers the .jinja file, and writes no template to the configuration when it writes that file.
    for path, found in (
        (folder / "chat_template.json", read_object(folder / "chat_template.json")),
        (config_file, config),
        (folder / JINJA_FILE, {"chat_template": read_text(folder / JINJA_FILE)}),
        (folder / "processor_config.json", read_object(folder / "processor_config.json")),
    ):
        text = _default_of(found.get("chat_template"), path)
        if text is not None:
            return TemplateSource(text, str(path), variables)
    if _is_falcon_chat(folder, name):
        logger.info("%s has no chat template: Falcon's own form is used", name or folder)
        return TemplateSource(_falcon_form(folder, name), "the built-in Falcon form", variables)
    return None


def _variables(config: dict[str, Any], tokens_map: dict[str, Any]) -> dict[str, str]:
    """The tokens that templates may use; one that the model does not have stays undefined."""
    found = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = named_token(config.get(key)) or named_token(tokens_map.get(key))
        if token is not None:
            found[key] = token
    return found


def _default_of(value: object, path: Path) -> str | None:
    """The text of a template, or of the one called `default` in a list or an object of several."""
    if isinstance(value, list):
        pairs = [each for each in value if isinstance(each, dict)]
        value = {each.get("name"): each.get("template") for each in pairs}
    if isinstance(value, dict):
        if "default" not in value:
            raise ConfigError(f"{path}: none of its chat templates is called `default`")
        value = value["default"]
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigError(f"{path}: chat_template is a JSON {type(value).__name__}, expected text")
    if len(value) > MAX_SOURCE_CHARACTERS:
        raise ConfigError(f"{path}: chat_template has more than {MAX_SOURCE_CHARACTERS} characters")
    return value


def _is_falcon_chat(folder: Path, name: str) -> bool:
    """Whether a model without a template says of itself that it was trained for chats.

    Only names tell: the configurations of Falcon-7B and Falcon-7B-instruct are the same. Any of
    three may: what users call it, its folder, and the `_name_or_path` of its configuration.
    """
    return any(_CHAT_NAME.search(each) for each in _names(folder, name))


def _names(folder: Path, name: str) -> tuple[str, ...]:
    written = read_object(folder / "config.json").get("_name_or_path")
    return (name, folder.name, written if isinstance(written, str) else "")


def _falcon_form(folder: Path, name: str) -> str:
    if any(_SELF_NAMED.search(each) for each in _names(folder, name)):
        return FALCON_TEMPLATE.replace("Assistant:", "Falcon:")
    return FALCON_TEMPLATE
