"""`text-generation-launcher` as TGI's deployments and its own integration harness start it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.server import KEPT_VARIABLES, SOURCE_FOLDER
from tiercel import eyas
from tiercel.bench.server import free_port
from tiercel.launcher import LauncherSettings

# Section 5 of the contract.
TGI_FLAGS = """
model-id revision trust-remote-code dtype quantize kv-cache-dtype speculate lora-adapters
rope-scaling rope-factor tokenizer-config-path sharded num-shard shard-uds-path master-addr
master-port cuda-memory-fraction cuda-graphs disable-custom-kernels max-concurrent-requests
max-best-of max-stop-sequences max-top-n-tokens max-client-batch-size max-input-tokens
max-input-length max-total-tokens payload-limit validation-workers max-batch-prefill-tokens
max-batch-total-tokens waiting-served-ratio max-waiting-tokens max-batch-size
disable-grammar-support enable-prefill-logprobs watermark-gamma watermark-delta hostname port
prometheus-port api-key cors-allow-origin otlp-endpoint otlp-service-name json-output usage-stats
graceful-termination-timeout env ngrok ngrok-authtoken ngrok-edge huggingface-hub-cache
weights-cache-override
"""
HARNESS = (
    "--master-port", "10000", "--shard-uds-path", "/nowhere/uds", "--num-shard", "1",
    "--dtype", "bfloat16", "--cuda-graphs", "1,2,4", "--max-input-length", "64",
    "--max-batch-prefill-tokens", "64", "--max-total-tokens", "128", "--trust-remote-code",
    "--disable-grammar-support",
)  # fmt: skip
# A filter of Rust's tracing, and switches of TGI's kernels.
HARNESS_VARIABLES = {
    "LOG_LEVEL": "info,text_generation_router=debug",
    "PREFILL_CHUNKING": "1",
    "USE_FLASH_ATTENTION": "true",
    "ATTENTION": "flashdecoding",
}


def command(*arguments: str) -> list[str]:
    """The installed script; its module where only the sources are there."""
    script = shutil.which("text-generation-launcher", path=str(Path(sys.executable).parent))
    start = [script] if script else [sys.executable, "-m", "tiercel.launcher"]
    return [*start, *arguments]


def variables(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": str(SOURCE_FOLDER), "HF_HUB_OFFLINE": "1", **more}


@contextmanager
def launched(log: Path, *arguments: str, **more: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is asked to end, and given TGI's 60 seconds to do so."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(*arguments), stdout=output, stderr=subprocess.STDOUT, env=variables(**more)
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def ask(port: int, path: str, body: object | None = None) -> bytes:
    """The answer to a GET, or to a POST of JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
        return content


def wait_until_it_generates(process: "subprocess.Popen[bytes]", port: int, log: Path) -> object:
    """As the harness waits: POST `/` until that works, or the process has ended."""
    body = {"inputs": "test", "parameters": {"max_new_tokens": 1}}
    deadline_s = time.monotonic() + 100
    while time.monotonic() < deadline_s:
        assert process.poll() is None, log.read_text()
        try:
            return json.loads(ask(port, "/", body))
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise TimeoutError(log.read_text())


@pytest.mark.slow
def test_tgis_harness_can_start_it(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    arguments = ("--model-id", str(eyas.path()), "--port", str(port), *HARNESS)
    with launched(log, *arguments, **HARNESS_VARIABLES) as process:
        (answer,) = wait_until_it_generates(process, port, log)  # type: ignore[misc]
        assert answer["generated_text"].startswith("test")
        info = json.loads(ask(port, "/info"))
        assert (info["max_input_tokens"], info["max_total_tokens"]) == (64, 128)
        assert info["model_dtype"] == "bfloat16"
        listening = f":{port:04X}".encode()
        addresses = [line.split()[1] for line in Path("/proc/net/tcp").read_bytes().splitlines()]
        assert b"00000000" + listening in addresses  # TGI's default is any address
    lines = [line for line in log.read_text().splitlines() if "without effect" in line]
    assert len(lines) == 1
    for flag in ("--master-port", "--shard-uds-path", "--trust-remote-code"):
        assert flag in lines[0]


@pytest.mark.slow
def test_sagemaker_can_start_it(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    said = {
        "HF_MODEL_ID": str(eyas.path()),
        "SM_NUM_GPUS": "1",
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "MAX_TOTAL_TOKENS": "128",
    }
    with launched(log, "serve", **said) as process:
        wait_until_it_generates(process, port, log)
        assert ask(port, "/ping") == b""
        body = {"inputs": "Fellow", "parameters": {"max_new_tokens": 2}}
        (answer,) = json.loads(ask(port, "/invocations", body))
        assert answer["generated_text"].startswith("Fellow")
        assert json.loads(ask(port, "/info"))["max_total_tokens"] == 128


def test_all_flags_of_tgi_are_known() -> None:
    names = {flag.replace("-", "_") for flag in TGI_FLAGS.split()}
    assert names <= set(LauncherSettings.model_fields)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--num-shard", "0"), "--num-shard"),
        (("--sharded", "perhaps"), "--sharded"),
        (("--quantize", "awq"), "--quantize"),
        (("--port", "99999"), "--port"),
    ],
)
def test_what_cannot_be_honoured_ends_with_code_2(arguments: tuple[str, ...], part: str) -> None:
    run = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, env=variables()
    )
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"text-generation-launcher: error: {part}: ")


def test_a_predict_route_that_is_taken_ends_before_loading() -> None:
    run = subprocess.run(
        command("--port", "0"),
        capture_output=True,
        text=True,
        timeout=60,
        env=variables(AIP_PREDICT_ROUTE="/generate", AIP_HTTP_PORT="8080"),
    )
    assert run.returncode == 2
    assert "AIP_PREDICT_ROUTE: /generate is taken" in run.stderr.splitlines()[-1]
    assert "Loading" not in run.stderr
