"""Two hosts, as network namespaces of one machine, with torchrun: a lost link ends both."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.server import KEPT_VARIABLES, SOURCE_FOLDER

RANK_LOST = 6
LEFT, RIGHT = "10.77.61.1", "10.77.61.2"
PORT = 3000  # of a namespace of its own
SECONDS = 30.0
ASK = """
import httpx, json, sys, time
body = {"inputs": "Story", "parameters": {"max_new_tokens": int(sys.argv[1])}}
with httpx.stream("POST", "http://127.0.0.1:3000/generate_stream", json=body, timeout=60) as events:
    for line in events.iter_lines():
        if line.startswith("data:"):
            print(time.time(), line[5:].strip(), flush=True)
"""

pytestmark = pytest.mark.slow


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces with a cable between them. Needs root and iproute2."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    left, right = (f"tiercel-{side}-{os.getpid()}" for side in "ab")
    try:
        ip("netns", "add", left)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", right)
        ip("link", "add", "tca", "netns", left, "type", "veth", "peer", "tcb", "netns", right)
        for host, device, address in ((left, "tca", LEFT), (right, "tcb", RIGHT)):
            ip("-n", host, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", host, "link", "set", device, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield left, right
    finally:
        for host in (left, right):
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", host)


def start(host: str, rank: int, model: Path, log: Path) -> "subprocess.Popen[bytes]":
    """`torchrun -m tiercel serve` on one of the hosts."""
    variables = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    variables |= {"PYTHONPATH": str(SOURCE_FOLDER), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        "ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run",
        "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(rank),
        "--master-addr", LEFT, "--master-port", "29500",
        "-m", "tiercel", "serve", str(model), "--device", "cpu", "--threads", "1",
        "--port", str(PORT),
    ]  # fmt: skip
    with log.open("wb") as file:
        return subprocess.Popen(command, env=variables, stdout=file, stderr=file)


def in_host(host: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", host, *command]


def wait_healthy(host: str, log: Path) -> None:
    deadline = time.monotonic() + 90
    check = (sys.executable, "-m", "tiercel", "healthcheck", f"http://127.0.0.1:{PORT}")
    variables = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER)}
    while subprocess.run(in_host(host, *check), env=variables, capture_output=True).returncode:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def test_a_cut_link_ends_both_sides(
    hosts: tuple[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    left, right = hosts
    logs = [tmp_path / "left.log", tmp_path / "right.log"]
    ranks = [start(host, rank, tiny_model, logs[rank]) for rank, host in enumerate(hosts)]
    try:
        wait_healthy(left, logs[0])
        ask = in_host(left, sys.executable, "-c", ASK)
        whole = subprocess.run([*ask, "20"], capture_output=True, text=True, timeout=60)
        assert '"index":20,' in whole.stdout.splitlines()[-1]
        with subprocess.Popen([*ask, "1900"], stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            for _ in range(3):
                assert '"token"' in client.stdout.readline()
            ip("-n", right, "link", "set", "tcb", "down")
            cut_s = time.time()
            last = client.stdout.read().splitlines()[-1]
        told_s = float(last.split()[0]) - cut_s
        assert '"error_type":"generation"' in last
        codes = [rank.wait(SECONDS) for rank in ranks]
        ended_s = time.time() - cut_s
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    print(f"\ntold after {told_s:.1f} s, both ended after {ended_s:.1f} s")
    assert ended_s <= SECONDS
    assert codes == [1, 1]  # torchrun's own; it says what its processes ended with
    for log in logs:
        assert f"exitcode  : {RANK_LOST} " in log.read_text()
