"""From a model's name to a folder, over a hub on loopback and without any network."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiercel
from support.checkpoints import make_checkpoint
from support.hub import REVISION, Hub, running_hub
from tiercel.errors import ConfigError, WeightsError
from tiercel.model.checkpoint import Checkpoint
from tiercel.model.config import load_spec
from tiercel.model.hub import resolve_config, resolve_model

# Ends the process with code 99 as soon as a socket is made or a name is looked up.
NO_SOCKETS = """
import os, sys
def forbid(event, arguments):
    if event.startswith("socket."):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(99)
sys.addaudithook(forbid)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = make_checkpoint(tmp_path / "served", "7b", shards=2, tokenizer=True)
    (folder / "modeling_falcon.py").write_text("raise SystemExit('remote code was run')\n")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    with running_hub(folder) as running:
        yield running


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PYTHONPATH": str(Path(tiercel.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=variables | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_download_then_cache(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = resolve_model("org/tiny", cache_dir=cache, endpoint=hub.endpoint)
    assert folder.name == REVISION
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not names & {"modeling_falcon.py", "pytorch_model.bin"}
    checkpoint = Checkpoint.open(folder, load_spec(folder))
    assert checkpoint.tensor("ln_f.weight").shape == (80,)

    hub.requested.clear()
    again = resolve_model("org/tiny", cache_dir=cache, endpoint=hub.endpoint, offline=True)
    assert (again, hub.requested) == (folder, [])
    hub.status = 503  # a hub that is down does not matter once the files are there
    assert resolve_model("org/tiny", cache_dir=cache, endpoint=hub.endpoint) == folder


def test_the_config_alone(hub: Hub, tmp_path: Path) -> None:
    path = resolve_config("org/tiny", cache_dir=tmp_path / "cache", endpoint=hub.endpoint)
    assert path.read_bytes() == (hub.folder / "config.json").read_bytes()
    assert [each.name for each in path.parent.iterdir()] == ["config.json"]
    assert not [each for each in hub.requested if "safetensors" in each]
    hub.status = 404
    with pytest.raises(ConfigError, match="org/tiny"):
        resolve_config("org/tiny", cache_dir=tmp_path / "other", endpoint=hub.endpoint)
    with pytest.raises(ConfigError, match="is a folder here"):
        resolve_config(str(tmp_path))


def test_offline_without_the_cache(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"org/tiny.*HF_HUB_OFFLINE"):
        resolve_model("org/tiny", cache_dir=tmp_path / "c", endpoint=hub.endpoint, offline=True)
    assert hub.requested == []


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "RepoNotFound", "not on the hub, or private"),
        (404, "RepoNotFound", "not on the hub, or private"),
        (403, "GatedRepo", "is gated"),
        (418, "", "answered 418"),
    ],
)
def test_answers_of_the_hub(status: int, code: str, says: str, hub: Hub, tmp_path: Path) -> None:
    hub.status, hub.error_code = status, code
    with pytest.raises(ConfigError, match=says) as caught:
        resolve_model("org/tiny", cache_dir=tmp_path / "cache", endpoint=hub.endpoint)
    assert "org/tiny" in str(caught.value)
    assert str(caught.value).isprintable()


def test_unknown_revision(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'gone'.*--revision"):
        resolve_model("org/tiny", "gone", cache_dir=tmp_path / "c", endpoint=hub.endpoint)


def test_no_hub_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"org/tiny.*check the network"):
        resolve_model("org/tiny", cache_dir=tmp_path, endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["a/b/c", "org/na me", "../missing", "/no/folder", "", "x" * 300])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        resolve_model(name, cache_dir=tmp_path, endpoint="http://127.0.0.1:9")


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="org/tiny"):
        resolve_model("org/tiny", cache_dir=tmp_path / "file", endpoint=hub.endpoint)


def test_a_model_of_pickles_only(hub: Hub, tmp_path: Path) -> None:
    for file in hub.folder.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(WeightsError, match="tiercel convert"):
        resolve_model("org/tiny", cache_dir=tmp_path / "cache", endpoint=hub.endpoint)


def test_a_folder_opens_no_socket(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b", tokenizer=True)
    code = (
        f"{NO_SOCKETS}\nfrom tiercel.model.hub import resolve_model\n"
        "from tiercel.model.config import load_spec\n"
        "from tiercel.model.checkpoint import Checkpoint\n"
        f"folder = resolve_model({str(tmp_path)!r})\n"
        "checkpoint = Checkpoint.open(folder, load_spec(folder))\n"
        "[checkpoint.tensor(name) for name in checkpoint.names]\n"
    )
    result = run_python(code)
    assert (result.returncode, result.stderr) == (0, "")


def test_hf_hub_offline_opens_no_socket(tmp_path: Path) -> None:
    code = f"{NO_SOCKETS}\nfrom tiercel.model.hub import resolve_model\nresolve_model('org/tiny')"
    result = run_python(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert result.returncode == 1
    assert "ConfigError: model 'org/tiny'" in result.stderr
    assert "HF_HUB_OFFLINE" in result.stderr
    online = run_python(code, HF_HOME=str(tmp_path))
    assert online.returncode == 99, "the hook must see sockets"
