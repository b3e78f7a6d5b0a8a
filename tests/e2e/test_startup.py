"""What the command does with a model it cannot serve, and that a local model needs no network."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint
from support.client import client_of, generate, run
from support.corrupt import CANARY, CONFIGS, WEIGHTS, Corruption
from support.server import make_server, startup_errors
from support.vocabularies import drop_letter
from tiercel.bench.server import ServerExited

CONFIG_EXIT, WEIGHTS_EXIT = 2, 3  # the documented exit codes
WEIGHT_CASES = ("truncated_by_half", "tensor_missing", "shape_transposed", "nan", "pickle")
CONFIG_CASES = ("heads_not_dividing", "field_unknown", "type_unknown")


def chosen(cases: Sequence[Corruption], names: Sequence[str]) -> list[Corruption]:
    return [case for case in cases if case.name in names]


def refusal(folder: Path, case: Corruption, exit_code: int) -> None:
    """Break a good model, start a server on it, and hold what it says against the case."""
    model = make_checkpoint(folder / "model", "7b", tokenizer=True, shards=case.shards)
    case.apply(model)
    server = make_server(folder, model)
    started_s = time.monotonic()
    with pytest.raises(ServerExited) as refused:
        server.start()
        try:
            server.wait_healthy(30.0)
        finally:
            server.clean_up()
    took_s = time.monotonic() - started_s
    log = refused.value.log
    (line,) = startup_errors(log)
    assert refused.value.exit_code == exit_code, log
    assert all(part in line for part in case.says), line
    assert "Traceback" not in log
    assert not (model / CANARY).exists()
    assert not server.survivors()
    assert took_s < 10


@pytest.mark.slow
@pytest.mark.parametrize("case", chosen(WEIGHTS, WEIGHT_CASES), ids=str)
def test_broken_weights_end_the_start_with_one_line(tmp_path: Path, case: Corruption) -> None:
    refusal(tmp_path, case, WEIGHTS_EXIT)


@pytest.mark.slow
@pytest.mark.parametrize("case", chosen(CONFIGS, CONFIG_CASES), ids=str)
def test_a_wrong_config_ends_the_start_with_one_line(tmp_path: Path, case: Corruption) -> None:
    refusal(tmp_path, case, CONFIG_EXIT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_fifo_in_the_models_folder_ends_the_start(tmp_path: Path, name: str) -> None:
    """The tokenizer's files are read first, by the process that serves."""

    def put_fifo(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    refusal(tmp_path, Corruption(name, put_fifo, (name, "not a regular file")), CONFIG_EXIT)


def test_every_sampled_case_exists() -> None:
    assert len(chosen(WEIGHTS, WEIGHT_CASES)) == len(WEIGHT_CASES)
    assert len(chosen(CONFIGS, CONFIG_CASES)) == len(CONFIG_CASES)


def test_a_tokenizer_that_drops_a_letter_is_named(tmp_path: Path, tiny_model: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    drop_letter(model, "Q")
    with make_server(tmp_path, model) as server:
        answer = run(generate(client_of(server), "Questions", max_new_tokens=2))
        log = server.log()
    assert answer["generated_text"]
    (warning,) = (line for line in log.splitlines() if "WARNING" in line)
    assert f"{model / 'tokenizer.json'} has no token for byte 0x51" in warning


def can_trace(folder: Path) -> bool:
    """Whether strace is here and may trace."""
    if shutil.which("strace") is None:
        return False
    probe = ["strace", "-f", "-qq", "-e", "trace=connect", "-o", str(folder / "probe"), "true"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


def far_addresses(trace: str) -> list[str]:
    """Addresses outside this machine that anything tried to connect to."""
    found = re.findall(r'connect\(.*AF_INET6?.*?"([0-9a-f.:]+)"', trace)
    return [address for address in found if not address.startswith("127.") and address != "::1"]


def test_the_trace_is_read_right() -> None:
    near = '7 connect(3, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("127.0.0.1")}'
    far = near.replace("127.0.0.1", "10.1.2.3")
    six = 'connect(4, {sa_family=AF_INET6, sin6_port=htons(9), inet_pton(AF_INET6, "2001:db8::1", &'
    unix = 'connect(3, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = 0'
    assert far_addresses("\n".join((near, far, six, unix))) == ["10.1.2.3", "2001:db8::1"]


@pytest.mark.slow
@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_local_model_opens_no_connection(tmp_path: Path, tiny_model: Path, offline: str) -> None:
    if not can_trace(tmp_path):
        pytest.skip("needs strace and the right to trace processes")
    trace = tmp_path / "trace"
    server = make_server(
        tmp_path,
        tiny_model,
        variables={"HF_HUB_OFFLINE": offline},
        wrapper=["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect", "-o", str(trace)],
    )
    with server:
        answer = run(generate(client_of(server), "Story", max_new_tokens=4))
    assert answer["generated_text"]
    assert far_addresses(trace.read_text()) == []
