"""A replica of two ranks in a placement group."""

import psutil
import pytest

from support.client import body, ids, run, stream
from support.ray_serve import Application, RayMachine, gone, until
from tiercel.bench.client import Client, Reply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROMPT = "Fellow citizens,"


def test_two_ranks_serve_and_are_replaced_together(machine: RayMachine) -> None:
    with Application(machine, num_shard=2, strategy="STRICT_PACK") as application:
        first = application.replicas(1)[0]
        rank = until(lambda: _second_rank(machine), "the second rank")
        family = [psutil.Process(first.pid), rank, *first.family()]
        assert len(ids(run(stream(application.client, PROMPT, max_new_tokens=30)))) == 30

        told = run(_cut(application.client, rank))
        assert told.complete
        assert "error" in told.events()[-1].data
        second = application.replicas(2)[1]
        until(lambda: gone(family), "an end of all processes of the first replica")
        successor = until(lambda: _second_rank(machine), "its successor")
        assert successor.pid != rank.pid
        reply = run(stream(application.client, PROMPT, max_new_tokens=30))
        assert len(ids(reply)) == 30
        assert reply.headers["x-tiercel-replica"] == second.name
        everything = [successor, *second.family()]
    until(lambda: gone(everything), "an end with the application")


async def _cut(client: Client, rank: psutil.Process) -> Reply:
    """A stream whose replica loses a rank after a few tokens."""
    exchange = await client.open("/generate_stream", body(PROMPT, max_new_tokens=1_900))
    assert await exchange.tokens(3) >= 3
    rank.kill()
    return await exchange.reply()


def _second_rank(machine: RayMachine) -> psutil.Process | None:
    """The process of rank 1, by the actor that runs it."""
    for process in machine.processes():
        if "ray::Rank" in " ".join(process.cmdline()):
            children = process.children()
            return children[0] if children else None
    return None
