"""Two replicas of eyas under load: streams, clients that leave, and processes that are killed."""

import asyncio
import json
import os
import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from support.client import body, run, stream
from support.ray_serve import Application, RayMachine, Replica, gone, until
from tiercel.bench.client import Client, Reply
from tiercel.bench.server import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONNECTIONS = 40
LOAD_S = 200.0
PROMPT = "Fellow citizens, the number is"
ENDLESS = "Fellow citizens,"  # eyas repeats itself after it


@pytest.fixture(scope="module")
def metrics_ports() -> range:
    first = min(free_port(), 65_526)
    return range(first, first + 10)


@pytest.fixture(scope="module")
def application(machine: RayMachine, metrics_ports: range) -> Iterator[Application]:
    ports = f"{metrics_ports[0]}-{metrics_ports[-1]}"
    with Application(machine, min_replicas=2, max_replicas=2, metrics_ports=ports) as running:
        running.replicas(2)
        until(lambda: _answering(running.client) == 2, "two replicas that answer")
        yield running


def _answering(client: Client) -> int:
    """How many different replicas answer a few requests."""

    async def ask() -> int:
        replies = [await client.get("/health") for _ in range(6)]
        return len({_replica(reply) for reply in replies if reply.status == 200})

    return run(ask())


def _replica(reply: Reply) -> str:
    return reply.headers.get("x-tiercel-replica", "")


def _whole(reply: Reply) -> bool:
    """Whether a stream came to the end of its text."""
    events = reply.events()
    ended = bool(events) and events[-1].data.get("generated_text") is not None
    return reply.status == 200 and reply.complete and ended


async def _load(
    client: Client, count: int, midway: Callable[[], None] | None = None
) -> list[Reply]:
    """So many streams, 40 at a time; `midway` runs when a third of them has ended."""
    replies: list[Reply] = []
    numbers = iter(range(count))

    async def connection() -> None:
        nonlocal midway
        for number in numbers:
            replies.append(await stream(client, f"{PROMPT} {number}", max_new_tokens=40))
            if midway is not None and len(replies) >= count // 3:
                act, midway = midway, None
                act()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return replies


def _share_of_time_between_first_and_last_token(reply: Reply) -> float:
    times = reply.token_times()
    return (times[-1] - times[0]) / (reply.ended_s - reply.sent_s)


def test_two_hundred_streams(application: Application) -> None:
    replies = run(_load(application.client, 200), LOAD_S)
    assert len(replies) == 200
    assert all(_whole(reply) for reply in replies)
    assert len({_replica(reply) for reply in replies}) == 2
    assert all(len(set(reply.token_times())) >= 3 for reply in replies if len(reply.events()) > 9)
    assert statistics.median(map(_share_of_time_between_first_and_last_token, replies)) > 0.3


def test_each_replica_has_a_port_for_its_metrics(
    application: Application, metrics_ports: range
) -> None:
    async def scrape(port: int) -> dict[str, float]:
        try:
            return await Client("127.0.0.1", port).metrics()
        except OSError:
            return {}

    async def scrape_all() -> list[dict[str, float]]:
        return [await scrape(port) for port in metrics_ports]

    found = [samples for samples in run(scrape_all()) if "tgi_batch_current_size" in samples]
    assert len(found) == len(application.replicas(2))


def test_answers_are_those_of_the_server(application: Application) -> None:
    """Status, body and headers, of every method and path; errors too."""

    async def both(request: bytes) -> tuple[Reply, Reply]:
        server = Client("127.0.0.1", application.replicas(2)[0].port)
        return await application.client.exchange(request), await server.exchange(request)

    async def compare(method: str, path: str, content: bytes = b"") -> Reply:
        length = f"content-length: {len(content)}\r\n" if content else ""
        fields = f"content-type: application/json\r\n{length}"
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: falcon.test\r\nconnection: close\r\n"
            f"origin: http://a.test\r\nx-request-id: me-7\r\naccept-encoding: gzip\r\n{fields}\r\n"
        )
        served, own = [await each.reply() for each in await both(head.encode() + content)]
        volatile = {"date", "server", "connection", "x-tiercel-replica", "transfer-encoding"}
        timed = re.compile("x-.*-time|x-time-per-token")
        shown = [
            {k: v for k, v in r.headers.items() if k not in volatile and not timed.fullmatch(k)}
            for r in (served, own)
        ]
        assert (served.status, served.body, shown[0]) == (own.status, own.body, shown[1])
        assert _replica(served) and served.headers["x-request-id"] == "me-7"
        return served

    async def ask() -> None:
        greedy = json.dumps(body(ENDLESS, max_new_tokens=5)).encode()
        assert (await compare("POST", "/generate", greedy)).status == 200
        assert (await compare("POST", "/generate?a=%2F&b=%20", greedy)).status == 200
        assert (await compare("POST", "/generate", b"{")).status >= 400
        assert (await compare("POST", "/tokenize", greedy)).status == 200
        assert (await compare("GET", "/no/such%2Froute")).status == 404
        assert (await compare("PUT", "/generate", greedy)).status == 405
        assert (await compare("GET", "/playground")).status == 200
        assert (await compare("POST", "/generate", b" " * 3_000_000)).status == 413

    run(ask())


def test_a_client_that_leaves_frees_the_server(application: Application) -> None:
    async def leave() -> None:
        servers = [Client("127.0.0.1", each.port) for each in application.replicas(2)]
        path, payload = "/generate_stream", body(ENDLESS, max_new_tokens=1_900)
        streams = [await application.client.open(path, payload) for _ in range(4)]
        waiting = await application.client.open("/generate", payload)
        for each in streams:
            assert await each.tokens(3) >= 3
        running = [(await server.metrics())["tgi_batch_current_size"] for server in servers]
        assert sum(running) == 5
        for each in (*streams, waiting):
            each.drop()
        for server in servers:
            await server.wait_until_idle()
        cancelled = 0.0
        for server in servers:
            samples = await server.metrics()
            name = "tiercel_requests_cancelled_total"
            cancelled += sum(value for key, value in samples.items() if key.startswith(name))
        assert cancelled == 5

    run(leave())


def _engine(replica: Replica) -> int:
    for process in replica.family():
        if "tiercel.engine.process" in process.cmdline():
            return process.pid
    raise AssertionError("the server has no engine")


VICTIMS: dict[str, Callable[[Replica], int]] = {
    "actor": lambda replica: replica.pid,
    "server": lambda replica: replica.server_pid,
    "engine": _engine,
}


@pytest.mark.parametrize("which", VICTIMS)
def test_what_is_killed_takes_only_its_own_requests_along(
    application: Application, which: str
) -> None:
    known = application.replicas(2)
    victim, survivor = known[-2:]
    family = [psutil.Process(victim.pid), *victim.family()]
    killed_s: list[float] = []

    def kill() -> None:
        os.kill(VICTIMS[which](victim), signal.SIGKILL)
        killed_s.append(time.perf_counter())

    replies = run(_load(application.client, 120, kill), LOAD_S)
    lost = [reply for reply in replies if not _whole(reply)]
    late = [reply.sent_s - killed_s[0] for reply in lost if reply.sent_s > killed_s[0]]
    print(f"{which} killed: {len(lost)} requests lost; {len(late)} were sent after it", late)
    assert len(replies) == 120
    assert 0 < len(lost) <= CONNECTIONS
    assert not [reply for reply in lost if _replica(reply) == survivor.name]
    if which == "actor":  # before it notices that it has lost its server, a replica takes requests
        assert not late
    until(lambda: gone(family), "an end of the killed replica's processes")
    assert len(application.replicas(len(known) + 1)) == len(known) + 1
    until(lambda: _answering(application.client) == 2, "two replicas that answer")
    assert all(_whole(reply) for reply in run(_some(application.client)))


async def _some(client: Client) -> list[Reply]:
    return await asyncio.gather(*(stream(client, PROMPT, max_new_tokens=9) for _ in range(10)))
