"""Ranks that a launcher starts, each a command of its own: how they meet, and how they end."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from support.client import body, client_of, open_stream, run
from support.server import make_server
from tiercel.bench.client import Reply
from tiercel.bench.server import LOOPBACK, ServerProcess, free_port

FOLLOWER_MODULE = "tiercel.worker.follower"
LONG = {"max_new_tokens": 1_900}

pytestmark = pytest.mark.slow


class Launcher:
    """The variables of `size` ranks on this machine."""

    def __init__(self, folder: Path, model: Path, size: int) -> None:
        self._folder, self._model, self._size = folder, model, size
        self._port = free_port()

    def rank(self, number: int, *flags: str) -> ServerProcess:
        """A rank that has not been started."""
        folder = self._folder / str(number)
        folder.mkdir()
        size = str(self._size)
        variables = {
            "RANK": str(number), "WORLD_SIZE": size, "LOCAL_RANK": str(number),
            "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(self._port),
        }  # fmt: skip
        flags = ("--heartbeat-timeout", "10", *flags)
        return make_server(folder, self._model, *flags, variables=variables)


@contextmanager
def started(*ranks: ServerProcess) -> Iterator[None]:
    with ExitStack() as stack:
        for rank in ranks:
            stack.callback(rank.clean_up)
            rank.start()
        yield


def follower_of(rank: ServerProcess) -> psutil.Process:
    (found,) = [each for each in rank.processes() if FOLLOWER_MODULE in each.cmdline()]
    return found


def test_ranks_with_other_flags_do_not_start(tmp_path: Path, tiny_model: Path) -> None:
    """Each of them says what differs, the first one too."""
    launcher = Launcher(tmp_path, tiny_model, 2)
    ranks = [launcher.rank(0), launcher.rank(1, "--dtype", "float16")]
    with started(*ranks):
        assert [rank.wait(60.0) for rank in ranks] == [2, 2]
        for rank in ranks:
            assert "the ranks differ in --dtype: float16 on rank 1, None on rank 0" in rank.log()
            assert "Traceback" not in rank.log()
            assert not rank.survivors()


def test_a_lost_rank_is_named_though_nobody_saw_it_end(tmp_path: Path, tiny_model: Path) -> None:
    """Of three, so that there is another one that could be blamed."""
    launcher = Launcher(tmp_path, tiny_model, 3)
    ranks = [launcher.rank(number) for number in range(3)]

    async def cut() -> Reply:
        exchange = await open_stream(client_of(ranks[0]), "Story", **LONG)
        assert await exchange.tokens(3) >= 3
        follower_of(ranks[2]).kill()
        return await exchange.reply()

    with started(*ranks):
        ranks[0].wait_healthy()
        began = time.monotonic()
        reply = run(cut())
        told_s = time.monotonic() - began
        assert reply.events()[-1].data["error_type"] == "generation"
        assert "rank 2 has not been heard for" in reply.events()[-1].data["error"]
        assert told_s <= 10
        assert [rank.wait(20.0) for rank in ranks] == [6, 6, 6]
        assert not any(rank.survivors() for rank in ranks)
        assert "rank 2 has not been heard for" in ranks[1].log()


def test_a_signal_to_all_ranks_drains(tmp_path: Path, tiny_model: Path) -> None:
    launcher = Launcher(tmp_path, tiny_model, 2)
    ranks = [launcher.rank(0), launcher.rank(1)]

    async def drain() -> Reply:
        exchange = await open_stream(client_of(ranks[0]), "Story", max_new_tokens=200)
        assert await exchange.tokens(2) >= 2
        for rank in reversed(ranks):
            rank.send(signal.SIGTERM)
        return await exchange.reply()

    with started(*ranks):
        ranks[0].wait_healthy()
        assert run(drain()).events()[-1].data["generated_text"]
        assert [rank.wait(20.0) for rank in ranks] == [0, 0]
        assert not any(rank.survivors() for rank in ranks)


def test_a_drain_that_takes_too_long_is_no_failure(tmp_path: Path, tiny_model: Path) -> None:
    """What is still running is told; the other ranks end as after any other drain."""
    launcher = Launcher(tmp_path, tiny_model, 2)
    ranks = [launcher.rank(0, "--graceful-termination-timeout", "1"), launcher.rank(1)]

    async def drain() -> Reply:
        client = client_of(ranks[0])
        exchange = await client.open("/generate_stream", body("Story", **LONG))
        assert await exchange.tokens(2) >= 2
        ranks[0].send(signal.SIGTERM)
        return await exchange.reply()

    with started(*ranks):
        ranks[0].wait_healthy()
        assert "shutting down" in run(drain()).events()[-1].data["error"]
        assert [rank.wait(20.0) for rank in ranks] == [0, 0]


def test_a_rank_that_waits_for_the_others_can_be_stopped(tmp_path: Path, tiny_model: Path) -> None:
    rank = Launcher(tmp_path, tiny_model, 2).rank(1)
    with started(rank):
        deadline = time.monotonic() + 30
        while not rank.processes()[1:] and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(3.0)
        rank.send(signal.SIGTERM)
        assert rank.wait(10.0) == 0
        assert not rank.survivors()
