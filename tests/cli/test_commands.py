"""`tiercel download` and `tiercel healthcheck` as processes, against a hub and servers on loopback;
and a server of a downloaded model that talks to nobody.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.checkpoints import make_checkpoint
from support.conformance_collector import Collector
from support.edge_server import EdgeServer
from support.hub import Hub, running_hub
from support.server import SOURCE_FOLDER, make_server

# Notes, in every Python process of a server, whom it wants to talk to and which names it looks up.
WITNESS = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["WITNESS_LOG"], "a") as log:
            log.write(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}\\n")
with open(os.environ["WITNESS_LOG"], "a") as log:
    log.write("began\\n")
sys.addaudithook(note)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = make_checkpoint(tmp_path / "served", "7b", tokenizer=True)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with running_hub(folder) as running:
        yield running


def tiercel(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "tiercel.cli", *arguments],
        env={**environment, "PYTHONPATH": str(SOURCE_FOLDER), **variables},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_download_into_a_folder(hub: Hub, tmp_path: Path) -> None:
    run = tiercel("download", "org/tiny", str(tmp_path / "model"), HF_ENDPOINT=hub.endpoint)
    assert (run.returncode, run.stdout.strip()) == (0, str(tmp_path / "model")), run.stderr
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= names
    assert "pytorch_model.bin" not in names


def test_a_server_of_a_downloaded_model_talks_to_nobody(hub: Hub, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    run = tiercel("download", "org/tiny", HF_ENDPOINT=hub.endpoint, HUGGINGFACE_HUB_CACHE=cache)
    assert run.returncode == 0 and run.stdout.strip().startswith(cache), run.stderr
    hub.requested.clear()
    (tmp_path / "witness").mkdir()
    (tmp_path / "witness" / "sitecustomize.py").write_text(WITNESS)
    log = tmp_path / "witness.log"
    variables = {
        "PYTHONPATH": f"{tmp_path / 'witness'}:{SOURCE_FOLDER}",
        "WITNESS_LOG": str(log),
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": hub.endpoint,
        "HUGGINGFACE_HUB_CACHE": cache,
    }
    server = make_server(tmp_path, "org/tiny", variables=variables)
    with server:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 3}}
        assert httpx.post(f"{server.url}/generate", json=body, timeout=60).status_code == 200
    assert hub.requested == []
    seen = log.read_text().splitlines()
    assert seen.count("began") >= 2  # the API's process and the engine's, at least
    # Unix sockets are this machine's own; an address of an internet socket is a tuple.
    assert [line for line in seen if "(('" in line or "getaddrinfo" in line] == []


def test_healthcheck() -> None:
    with EdgeServer() as server:
        assert tiercel("healthcheck", server.url).returncode == 0
        assert tiercel("healthcheck", PORT=str(server.port)).returncode == 0
        server.state.draining = True
        sick = tiercel("healthcheck", server.url)
        assert sick.returncode == 1 and "503" in sick.stderr
    gone = tiercel("healthcheck", PORT="9")
    assert gone.returncode == 1 and gone.stderr.startswith("unhealthy: ")
    assert tiercel("healthcheck", PORT="many").returncode == 1


def test_planted_secrets_are_nowhere(tmp_path: Path) -> None:
    """API key, hub token, collector's headers: in no log, metric, span, page or command line."""
    collector = Collector()
    planted = {"API_KEY": "plantedKey11", "HF_TOKEN": "hf_plantedToken22"}
    variables = {**planted, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=plantedHeader33"}
    flags = ("--env", "--log-level", "debug", "--otlp-endpoint", collector.endpoint)
    server = make_server(tmp_path, None, *flags, variables=variables)
    with server:
        pages = [server.get(path)[1] for path in ("/info", "/metrics", "/v1/models")]
        body = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
        assert httpx.post(f"{server.url}/generate", json=body).status_code == 401
        key = {"authorization": f"Bearer {planted['API_KEY']}"}
        answer = httpx.post(f"{server.url}/generate", json=body, headers=key, timeout=60)
        assert answer.status_code == 200
        pages.append(str(answer.headers))
        titles = [json.dumps(process.cmdline()) for process in server.processes()]
        server.stop()
    collector.stop()
    assert any(span.name == "generate" for span in collector.spans)
    log = (tmp_path / "server.log").read_text()
    said = "\n".join([*pages, *titles, log, *map(str, collector.spans)])
    assert "tiercel_build_info" in said and "tiercel" in " ".join(titles)
    for secret in ("plantedKey11", "plantedToken22", "plantedHeader33"):
        assert secret not in said
