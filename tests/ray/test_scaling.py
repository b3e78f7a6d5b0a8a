"""More replicas under load and fewer after it, without a request lost."""

import asyncio
import re

import psutil
import pytest

from support.client import body, ids, stream
from support.ray_serve import PATIENCE_S, Application, RayMachine, gone, until
from tiercel.bench.client import Reply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONNECTIONS = 16
TARGET = 4
ENDLESS = "Fellow citizens,"  # eyas repeats itself after it
ALL_TOKENS = 1_200


def test_scales_up_under_load_and_down_after_it(machine: RayMachine) -> None:
    arguments = {
        "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": TARGET,
        "upscale_delay_s": 1, "downscale_delay_s": 2, "look_back_s": 3,
    }  # fmt: skip
    with Application(machine, **arguments) as application:
        first = application.replicas(1)[0]
        assert asyncio.run(_both_directions(machine, application)) == 0
        second = application.replicas(2)[1]
        stopped = [item for item in (first, second) if not psutil.pid_exists(item.pid)]
        assert len(stopped) == 1
        log = machine.logs(f"replica_*_{stopped[0].name}.log")
        assert "Graceful shutdown complete" in log


async def _both_directions(machine: RayMachine, application: Application) -> int:
    """How many requests were lost."""
    loaded = True
    short: list[Reply] = []

    async def connection() -> None:
        while loaded:
            short.append(await stream(application.client, ENDLESS, max_new_tokens=40))

    before = len(_decisions(machine))
    connections = [asyncio.create_task(connection()) for _ in range(CONNECTIONS)]
    await asyncio.to_thread(application.replicas, 2)
    up = _decisions(machine)[before:]
    assert up[-1] == ("Upscaling", "1", "2")
    loaded = False
    await asyncio.gather(*connections)

    # As many as one replica should have, on both: one has to go, and these are still running then.
    payload = body(ENDLESS, max_new_tokens=ALL_TOKENS)
    streams = [await application.client.open("/generate_stream", payload) for _ in range(TARGET)]
    alive = [psutil.Process(replica.pid) for replica in application.replicas(2)]
    down = ("Downscaling", "2", "1")
    await asyncio.to_thread(until, lambda: _decisions(machine)[-1] == down, "scaling down")
    assert not any(each.ended.is_set() for each in streams)
    long = await asyncio.wait_for(asyncio.gather(*(each.reply() for each in streams)), PATIENCE_S)
    assert len({reply.headers["x-tiercel-replica"] for reply in long}) == 2
    assert [len(ids(reply)) for reply in long] == [ALL_TOKENS] * TARGET
    await asyncio.to_thread(until, lambda: any(gone([each]) for each in alive), "a replica's end")
    return sum(reply.status != 200 or not reply.complete for reply in short)


def _decisions(machine: RayMachine) -> list[tuple[str, str, str]]:
    """What the controller has logged: direction, from how many, to how many."""
    pattern = r"(Upscaling|Downscaling) Deployment.* from (\d+) to (\d+) replicas"
    return re.findall(pattern, machine.logs("controller_*.log"))
