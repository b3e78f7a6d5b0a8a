"""The benchmark's client: what it parses, what it stamps, how it leaves."""

import asyncio
from itertools import pairwise

import pytest

from support.scripted_server import ScriptedServer
from tiercel.bench.client import Client, Reply, parse_metrics


def ask(server: ScriptedServer, tokens: int) -> Reply:
    async def run() -> Reply:
        async with server:
            payload = {"inputs": "a", "parameters": {"max_new_tokens": tokens}}
            return await Client("127.0.0.1", server.port).post("/generate_stream", payload)

    return asyncio.run(run())


@pytest.mark.parametrize("split_bytes", [None, 1, 7])
def test_reads_every_event_however_the_bytes_are_cut(split_bytes: int | None) -> None:
    reply = ask(ScriptedServer(split_bytes=split_bytes), 5)
    events = reply.events()
    assert reply.status == 200
    assert reply.complete
    assert [event.data["index"] for event in events] == [1, 2, 3, 4, 5]
    assert events[-1].data["generated_text"] == "all"
    assert reply.token_times() == [event.arrival_s for event in events]


def test_stamps_events_when_they_arrive() -> None:
    reply = ask(ScriptedServer(first_s=lambda payload: 0.1, gap_s=lambda: 0.05), 4)
    times = reply.token_times()
    assert 0.09 < times[0] - reply.sent_s < 0.4
    assert all(0.04 < later - earlier < 0.3 for earlier, later in pairwise(times))


def test_a_stream_that_breaks_off_is_not_complete() -> None:
    reply = ask(ScriptedServer(break_after=2), 5)
    assert not reply.complete
    assert len(reply.events()) == 2


def test_reads_an_answer_with_a_length() -> None:
    async def run() -> tuple[Reply, dict[str, float]]:
        async with ScriptedServer(metrics={'a{le="1"}': 2.5, "b": 3}) as server:
            client = Client("127.0.0.1", server.port)
            return await client.post("/tokenize", {"inputs": "a b"}), await client.metrics()

    reply, metrics = asyncio.run(run())
    assert reply.complete
    assert reply.headers["x-test"] == "yes"
    assert len(reply.json()) == 4
    assert metrics == {"tgi_batch_current_size": 0.0, 'a{le="1"}': 2.5, "b": 3.0}


def test_dropping_closes_the_socket_and_keeps_what_came() -> None:
    async def run() -> tuple[int, Reply, int]:
        async with ScriptedServer(gap_s=lambda: 0.02) as server:
            client = Client("127.0.0.1", server.port)
            payload = {"inputs": "a", "parameters": {"max_new_tokens": 1000}}
            exchange = await client.open("/generate_stream", payload)
            seen = await exchange.tokens(3)
            exchange.drop()
            reply = await exchange.reply()
            await asyncio.sleep(0.2)
            return seen, reply, server.streaming

    seen, reply, streaming = asyncio.run(run())
    assert seen == 3
    assert len(reply.token_times()) == 3
    assert not reply.complete
    assert streaming == 0


def test_waiting_for_tokens_ends_with_the_stream() -> None:
    async def run() -> int:
        async with ScriptedServer() as server:
            payload = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
            exchange = await Client("127.0.0.1", server.port).open("/generate_stream", payload)
            return await exchange.tokens(10)

    assert asyncio.run(run()) == 2


def test_metrics_without_comments() -> None:
    text = '# HELP a b\n# TYPE a counter\na 1.0\nb{x="y z"} 2e3\n'
    assert parse_metrics(text) == {"a": 1.0, 'b{x="y z"}': 2000.0}
