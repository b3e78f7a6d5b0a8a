"""Two ranks on one machine: R-12 to R-14, and how they end on purpose."""

import asyncio
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from support.client import body, client_of, generate, ids, open_stream, run
from support.faults import at_step
from support.server import ENGINE_MODULE, engine_of, make_server
from tiercel.bench.server import ServerExited, ServerProcess

RANK_LOST = 6  # the documented exit code
FOLLOWER_MODULE = "tiercel.worker.follower"
LONG = {"max_new_tokens": 1_900}
STREAMS = 12
SHARED_MEMORY = Path("/dev/shm")

pytestmark = pytest.mark.slow


def follower_of(server: ServerProcess) -> psutil.Process:
    for process in server.processes():
        if FOLLOWER_MODULE in process.cmdline():
            return process
    raise AssertionError("the server has no second rank")


async def lose_a_rank(
    server: ServerProcess, act: Callable[[ServerProcess], None]
) -> tuple[float, float, list[str]]:
    """16 requests under way; seconds until all clients knew and until health was red; errors."""
    client = client_of(server)
    streams = [await open_stream(client, f"Story {n}", **LONG) for n in range(STREAMS)]
    whole = [await client.open("/generate", body(f"Tale {n}", **LONG)) for n in range(4)]
    seen = await asyncio.gather(*(exchange.tokens(3) for exchange in streams))
    assert all(count >= 3 for count in seen)
    act(server)
    began = time.monotonic()

    async def red() -> float:
        while await asyncio.to_thread(server.health) == 200:
            await asyncio.sleep(0.1)
        return time.monotonic() - began

    watching = asyncio.ensure_future(red())
    replies = await asyncio.gather(*(exchange.reply() for exchange in [*streams, *whole]))
    told_s = time.monotonic() - began
    errors = []
    for reply in replies[:STREAMS]:
        last = reply.events()[-1].data
        assert last["error_type"] == "generation"
        assert reply.complete
        errors.append(last["error"])
    for reply in replies[STREAMS:]:
        assert reply.status == 424
        errors.append(reply.json()["error"])
    return told_s, await watching, errors


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "the process of rank 1 ended by signal SIGKILL"),
        (signal.SIGSEGV, "the process of rank 1 ended by signal SIGSEGV"),
        (signal.SIGSTOP, "rank 1 has not been heard for"),
    ],
)
def test_a_lost_rank_ends_the_group(
    tmp_path: Path, tiny_model: Path, number: signal.Signals, reason: str
) -> None:
    """R-12, R-13: killed, crashed and stopped in the middle of 16 answers."""
    before = set(SHARED_MEMORY.iterdir())
    flags = ("--num-shard", "2", "--heartbeat-timeout", "4")
    with make_server(tmp_path, tiny_model, *flags) as server:
        told_s, red_s, errors = run(
            lose_a_rank(server, lambda server: follower_of(server).send_signal(number))
        )
        lost_s = time.monotonic()
        exit_code = server.wait(20.0)
        ended_s = time.monotonic() - lost_s
        log = server.log()
        survivors = server.survivors()
    print(f"\n{number.name}: told after {told_s:.1f} s, red after {red_s:.1f}, ended {ended_s:.1f}")
    assert {error.removeprefix("Request failed during generation: ") for error in errors} == {
        errors[0].removeprefix("Request failed during generation: ")
    }
    assert reason in errors[0]
    assert told_s <= 10
    assert red_s <= (5 if number is not signal.SIGSTOP else 10)
    assert exit_code == RANK_LOST
    assert not survivors
    assert set(SHARED_MEMORY.iterdir()) <= before
    assert log.count("CRITICAL") == 1
    assert f"{reason}" in next(line for line in log.splitlines() if "CRITICAL" in line)


FAULTS = [
    (FOLLOWER_MODULE, "raise MemoryError('of the test')", "rank 1 failed: MemoryError: of the te"),
    (ENGINE_MODULE, "raise ValueError('of the test')", "rank 0 failed: ValueError: of the test"),
]


@pytest.mark.parametrize(("module", "fault", "reason"), FAULTS, ids=["memory", "error"])
def test_a_rank_that_fails_in_a_step_ends_the_group(
    tmp_path: Path, tiny_model: Path, module: str, fault: str, reason: str
) -> None:
    """R-14."""
    variables = at_step(tmp_path, module, 60, 16, fault)
    # The engine says nothing while the fault is prepared in it.
    flags = ("--num-shard", "2", "--heartbeat-timeout", "30")
    with make_server(tmp_path, tiny_model, *flags, variables=variables) as server:
        _, _, errors = run(lose_a_rank(server, lambda _: None))
        assert server.wait(20.0) == RANK_LOST
        log = server.log()
        assert not server.survivors()
    assert all(reason in error for error in errors)
    assert log.count("CRITICAL") == 1
    assert reason in next(line for line in log.splitlines() if "CRITICAL" in line)


def test_a_killed_first_rank_takes_the_others_along(tmp_path: Path, tiny_model: Path) -> None:
    with make_server(tmp_path, tiny_model, "--num-shard", "2") as server:
        told_s, red_s, errors = run(
            lose_a_rank(server, lambda server: engine_of(server).send_signal(signal.SIGKILL))
        )
        assert server.wait(20.0) == 4
        assert not server.survivors()
    assert told_s <= 10
    assert red_s <= 5
    assert all("ended by signal SIGKILL" in error for error in errors)


def test_a_stopped_first_rank_takes_the_others_along(tmp_path: Path, tiny_model: Path) -> None:
    flags = ("--num-shard", "2", "--heartbeat-timeout", "3")
    with make_server(tmp_path, tiny_model, *flags) as server:
        run(generate(client_of(server), "Story", max_new_tokens=2))
        engine_of(server).send_signal(signal.SIGSTOP)
        assert server.wait(20.0) == 4
        assert not server.survivors()


def test_a_rank_that_cannot_load_says_why(tmp_path: Path, tiny_model: Path) -> None:
    """Only the second rank reads the broken row; its exit code is that of the server."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.word_embeddings.weight"][-1] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with (
        pytest.raises(ServerExited) as ended,
        make_server(tmp_path, folder, "--num-shard", "2"),
    ):
        pass
    assert ended.value.exit_code == 3
    assert "tiercel: error: rank 1 failed: " in str(ended.value)
    assert "word_embeddings.weight' holds NaN or infinities" in str(ended.value)


def test_two_ranks_drain_and_end(tmp_path: Path, tiny_model: Path) -> None:
    async def drain(server: ServerProcess) -> int:
        exchange = await open_stream(client_of(server), "Story", max_new_tokens=200)
        assert await exchange.tokens(2) >= 2
        server.send(signal.SIGTERM)
        return len(ids(await exchange.reply()))

    with make_server(tmp_path, tiny_model, "--num-shard", "2") as server:
        assert run(drain(server)) == 200
        assert server.wait(15.0) == 0
        log = server.log()
        assert not server.survivors()
    assert "[rank 1]" in log
    assert "ERROR" not in log


def rank_values(server: ServerProcess, name: str) -> dict[str, float]:
    """The values of a metric by its labels, as they are written."""
    lines = server.get("/metrics")[1].splitlines()
    pairs = (line.rpartition(" ") for line in lines if line.startswith(name + "{"))
    return {labels.removeprefix(name): float(value) for labels, _, value in pairs}


def test_metrics_per_rank(tmp_path: Path, tiny_model: Path) -> None:
    """What each holds, and how long it has been silent: the second one, while it is stopped."""
    flags = ("--num-shard", "2", "--heartbeat-timeout", "20", "--max-batch-total-tokens", "4096")
    with make_server(tmp_path, tiny_model, *flags) as server:
        run(generate(client_of(server), "Story", max_new_tokens=2))
        memory = rank_values(server, "tiercel_rank_memory_bytes")
        assert {labels.split(",")[0] for labels in memory} == {'{rank="0"', '{rank="1"'}
        shared, split = (
            [memory[f'{{rank="{rank}",kind="{kind}"}}'] for rank in (0, 1)]
            for kind in ("kv_cache", "weights")
        )
        assert shared[0] == shared[1] > 0
        assert all(1e5 < held < 3e6 for held in split)  # the whole has 2.5 MB of float32
        assert "\ntiercel_ranks 2\n" in server.get("/metrics")[1]
        stopped = follower_of(server)
        name, first, second = "tiercel_rank_heartbeat_age_seconds", '{rank="0"}', '{rank="1"}'
        ages = rank_values(server, name)
        assert set(ages) == {first, second} and all(0 <= age < 4 for age in ages.values())
        stopped.suspend()
        until(lambda: rank_values(server, name)[second] > 6)
        assert rank_values(server, name)[first] < 4
        stopped.resume()
        until(lambda: rank_values(server, name)[second] < 4)
        assert server.stop() == 0


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_idle_group_stays_together(tmp_path: Path, tiny_model: Path) -> None:
    """Longer than the timeout: silence of the engine's loop is no silence of the ranks."""
    flags = ("--num-shard", "2", "--heartbeat-timeout", "3")
    with make_server(tmp_path, tiny_model, *flags) as server:
        time.sleep(6.0)
        assert run(generate(client_of(server), "Story", max_new_tokens=2))
        assert server.stop() == 0
