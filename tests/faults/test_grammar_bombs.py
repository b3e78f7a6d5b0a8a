"""R-26: grammar bombs. Refused in time, while streams and probes hardly notice."""

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest

from support.server import make_server
from tiercel.bench.server import ServerProcess
from tiercel.sandbox.limits import DEFAULT_LIMITS

ANSWER_S = 3.0
CHILD_RSS = 512 << 20
PROBE_P99_S = 0.1
# The mean gap of a stream, over that without bombs; times what a machine whose two processors share
# a core loses to any process at all, one that is as nice as the bombs are. Such a process takes
# half of a core at the most: what is beyond that is other work, and no excuse for the bombs.
SLOWER = 1.5
MOST_SHARED = 2.0
ROUNDS = 10  # at most; the best counts: the machine is shared
UNIQUE = 1_000
MOST_BUSY = 10  # of them may be asked again, where the machine had no time for a check
SERVER_RSS = 64 << 20
SCHEMA = {"type": "string"}
SPIN = "while True: pass"
_DEEP = '{"properties":{"a":' * 10_000 + "{}" + "}}" * 10_000

BOMBS: dict[str, dict[str, object]] = {
    "nested counts": {"type": "regex", "value": "(x{1,1000}){1,1000}"},
    "large count": {"type": "regex", "value": "x{1000000}"},
    "optional and forced": {"type": "regex", "value": "(a?){1000}a{1000}"},
    "long": {"type": "regex", "value": "x" * 32_000},
    "1 MB": {"type": "regex", "value": "x" * 1_000_000},
    "3,000 properties": {
        "type": "json", "value": {"properties": {f"p{i}": SCHEMA for i in range(3_000)}},
    },
    "10k deep": {"type": "json", "value": _DEEP},
    "refers to itself": {"type": "json", "value": {"properties": {}, "anyOf": [{"$ref": "#"}]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with make_server(tmp_path_factory.mktemp("bombed")) as running:
        for _ in range(50):  # the first child is still starting
            if _ask(running, {"type": "regex", "value": "[ab]{3}"})[0] == 200:
                break
            time.sleep(0.1)
        yield running
        assert running.health() == 200
        assert running.stop() == 0


def _ask(
    server: ServerProcess, grammar: dict[str, object], client: httpx.Client | None = None
) -> tuple[int, float, str]:
    """Status, seconds and body of a short generation."""
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 2, "grammar": grammar}}
    post = httpx.post if client is None else client.post
    began = time.perf_counter()
    answer = post(f"{server.url}/generate", json=body, timeout=30)
    return answer.status_code, time.perf_counter() - began, answer.text


@contextmanager
def _stream(server: ServerProcess) -> Iterator[list[float]]:
    """The arrival times of a stream's tokens, while it runs."""
    arrivals: list[float] = []
    stop = threading.Event()
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 1_000, "stop": ["\x00"]}}

    def read() -> None:
        while not stop.is_set():
            with httpx.stream(
                "POST", f"{server.url}/generate_stream", json=body, timeout=30
            ) as events:
                for line in events.iter_lines():
                    if line:
                        arrivals.append(time.perf_counter())
                    if stop.is_set():
                        break

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while len(arrivals) < 50:
            time.sleep(0.01)
        yield arrivals
    finally:
        stop.set()
        reader.join()


def _mean_gap_s(arrivals: list[float], since: int) -> float:
    times = arrivals[since:]
    return (times[-1] - times[0]) / (len(times) - 1)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(server: ServerProcess, name: str) -> None:
    status, elapsed_s, text = _ask(server, BOMBS[name])
    assert status == 422, text
    assert elapsed_s <= ANSWER_S
    error = json.loads(text)
    assert error["error_type"] == "validation"
    assert "grammar" in error["error"] and len(error["error"]) < 1_000


def _in_sandbox(process: psutil.Process) -> bool:
    return any("tiercel.sandbox" in word for word in process.cmdline())


@contextmanager
def _neighbour() -> Iterator[None]:
    """A process that only computes."""
    busy = subprocess.Popen(["nice", "-n", str(DEFAULT_LIMITS.nice), sys.executable, "-c", SPIN])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def _round(server: ServerProcess, number: int) -> tuple[float, float, float]:
    """Eight bombs at once: (slowest answer, p99 of probes, stream's gap over that without).

    On a machine so busy that a bomb had no time to show what it is, the answer is to try again:
    then the slowest took for ever, and the round is as good as one that missed its limit.
    """
    fresh = [  # never seen, so that no verdict is remembered
        {"type": "regex", "value": f"(x{{1,{1_000 - 8 * number - index}}}){{1,1000}}"}
        for index in range(8)
    ]
    probes: list[float] = []
    with _stream(server) as arrivals, ThreadPoolExecutor(8) as threads:
        time.sleep(1.0)
        quiet_s = _mean_gap_s(arrivals, 10)
        since = len(arrivals)
        with _neighbour():
            time.sleep(1.0)
        shared = min(MOST_SHARED, max(1.0, _mean_gap_s(arrivals, since) / quiet_s))
        since = len(arrivals)
        answers = [threads.submit(_ask, server, bomb) for bomb in fresh]
        with httpx.Client() as client:
            while not all(answer.done() for answer in answers):
                began = time.perf_counter()
                assert client.get(f"{server.url}/health", timeout=10).status_code == 200
                probes.append(time.perf_counter() - began)
                time.sleep(0.005)
        results = [answer.result() for answer in answers]
        for child in psutil.Process(server.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it may have been killed, as bombs are
                if _in_sandbox(child):
                    assert child.memory_info().rss <= CHILD_RSS
        stretched = _mean_gap_s(arrivals, since) / quiet_s / shared
        print(f"\na neighbour alone: {shared:.2f}, the bombs {stretched:.2f} times that")
    assert {status for status, _, _ in results} <= {422, 429}, results
    slowest_s = max(elapsed_s if status == 422 else math.inf for status, elapsed_s, _ in results)
    return slowest_s, sorted(probes)[int(len(probes) * 0.99)], stretched


@pytest.mark.slow
def test_streams_keep_their_pace_beside_eight_bombs(server: ServerProcess) -> None:
    best = (math.inf, math.inf, math.inf)
    limits = (ANSWER_S, PROBE_P99_S, SLOWER)
    for number in range(ROUNDS):
        best = tuple(min(pair) for pair in zip(best, _round(server, number), strict=True))
        if all(found <= limit for found, limit in zip(best, limits, strict=True)):
            break
    slowest_s, probe_s, stretched = best
    print(
        f"slowest answer {slowest_s:.2f} s, p99 of probes {probe_s * 1e3:.0f} ms, "
        f"gap {stretched:.2f} times that without"
    )
    assert slowest_s <= ANSWER_S
    assert probe_s <= PROBE_P99_S
    assert stretched <= SLOWER


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_many_different_grammars_do_not_pile_up(server: ServerProcess) -> None:
    engine_and_edge = [
        process
        for process in (psutil.Process(server.pid), *psutil.Process(server.pid).children())
        if not _in_sandbox(process)
    ]
    sizes = []
    busy = 0
    with httpx.Client() as client:  # to make one takes longer than an answer
        for index in range(UNIQUE):
            grammar: dict[str, object] = {"type": "regex", "value": f"[ab]{{3}}{index}"}
            status, _, text = _ask(server, grammar, client)
            while status == 429 and busy < MOST_BUSY:
                busy += 1
                status, _, text = _ask(server, grammar, client)
            assert status == 200, text
            if index in (UNIQUE // 2, UNIQUE - 1):
                sizes.append(sum(process.memory_info().rss for process in engine_and_edge))
    print(f"\nthe second half added {(sizes[1] - sizes[0]) >> 20} MB")
    assert sizes[1] - sizes[0] <= SERVER_RSS
