"""`--json-output`: whatever a server says, from first to last, is one object per line."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.checkpoints import make_checkpoint
from support.server import engine_of, make_server
from tiercel.bench.server import ServerExited

GENERATE = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}}


def lines_of(log: str) -> list[dict[str, Any]]:
    """Every line of standard output and error, each of which must be one object."""
    try:
        found = [json.loads(line) for line in log.splitlines()]
    except ValueError:
        pytest.fail(f"a line that is no object: {log}")
    for line in found:
        assert {"timestamp", "level", "message", "target"} <= set(line)
    return found


@pytest.mark.parametrize("how", ["flag", "variable", "file"])
def test_a_whole_life(tmp_path: Path, how: str) -> None:
    """With the embedded model, which has most to say to a newcomer, up to a signal."""
    file = tmp_path / "config.toml"
    file.write_text("json_output = true\n")
    flags = {"flag": ["--json-output"], "variable": [], "file": ["--config-file", str(file)]}[how]
    variables = {"JSON_OUTPUT": "true"} if how == "variable" else {}
    flags += ["--env", "--log-level", "debug", "--usage-stats", "on", "--api-key", "one"]
    with make_server(tmp_path, None, *flags, variables=variables) as server:
        key = {"authorization": "Bearer one"}
        for headers in (key, {}):
            httpx.post(f"{server.url}/generate", json=GENERATE, headers=headers, timeout=60)
        httpx.post(f"{server.url}/generate", content=b"{", headers=key, timeout=60)
        assert server.stop() == 0
        log = server.log()
    lines = lines_of(log)
    said = [line["message"] for line in lines]
    assert any(text.startswith("loading: ") for text in said)
    assert any(text.startswith("serving ") for text in said)
    statuses = [line["status"] for line in lines if line["message"].startswith("request ")]
    assert statuses == [200, 401, 415]


@pytest.mark.slow
def test_two_ranks_and_an_engine_that_dies(tmp_path: Path, tiny_model: Path) -> None:
    flags = ("--json-output", "--num-shard", "2")
    with make_server(tmp_path, tiny_model, *flags) as server:
        httpx.post(f"{server.url}/generate", json=GENERATE, timeout=60)
        engine_of(server).send_signal(signal.SIGKILL)
        assert server.wait(30) == 4
        log = server.log()
    lines = lines_of(log)
    assert {line.get("rank") for line in lines} == {None, 0, 1}
    assert [line["level"] for line in lines].count("CRITICAL") >= 1


@pytest.mark.parametrize(
    ("flags", "variables", "exit_code", "sentence"),
    [
        (["--json-output", "--max-input-tokens", "9", "--max-total-tokens", "9"], {}, 2,
         "--max-input-tokens 9 must be less"),
        (["--max-best-of", "0"], {"JSON_OUTPUT": "1"}, 2, "--max-best-of"),
        (["--json-output", "--no-such-flag"], {}, 2, "No such option"),
        (["--json-output", "--port", "many"], {}, 2, "valid integer"),
        (["--json-output", "--model-id", "/nowhere/at/all"], {}, 2, "is not a folder"),
    ],
)  # fmt: skip
def test_a_start_that_fails(
    tmp_path: Path, flags: list[str], variables: dict[str, str], exit_code: int, sentence: str
) -> None:
    server = make_server(tmp_path, None, *flags, variables=variables)
    server.start()
    try:
        assert server.wait(60) == exit_code
    finally:
        server.clean_up()
    *_, last = lines_of(server.log())
    assert (last["level"], last["exit_code"]) == ("CRITICAL", exit_code)
    assert sentence in last["message"]


def test_weights_that_the_engine_refuses(tmp_path: Path) -> None:
    """What fails in another process, and after the settings were read."""
    model = make_checkpoint(tmp_path / "model", "7b", tokenizer=True)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ServerExited) as refused, make_server(tmp_path, model, "--json-output"):
        pass
    *_, last = lines_of(refused.value.log)
    assert (last["level"], last["exit_code"], refused.value.exit_code) == ("CRITICAL", 3, 3)


def test_warnings_and_defects_are_lines_too(tmp_path: Path) -> None:
    script = (
        "import threading, warnings\n"
        "from tiercel.telemetry.logs import configure_logging\n"
        "configure_logging('info', json=True)\n"
        "warnings.warn('an old thing')\n"
        "def fail(): raise ValueError('in a thread')\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "raise ValueError('in the end')\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (1, "")
    warning, thread, end = lines_of(run.stderr)
    assert (warning["level"], "an old thing" in warning["message"]) == ("WARNING", True)
    assert "ValueError: in a thread" in thread["exception"]
    assert "ValueError: in the end" in end["exception"]
