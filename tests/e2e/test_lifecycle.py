"""How a server ends: a dead engine, a frozen engine, SIGTERM once and twice."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from support.client import body, client_of, generate, ids, open_stream, run
from support.server import engine_of, make_server
from tiercel.bench.client import Client, Exchange
from tiercel.bench.server import ServerProcess

ENGINE_DIED = 4  # the documented exit code
LONG = {"max_new_tokens": 1_900}


async def start_clients(client: Client) -> list[Exchange]:
    """Four streams, each with tokens, and two requests that wait for their whole answer."""
    streams = [await open_stream(client, f"Story {n}", **LONG) for n in range(4)]
    whole = [await client.open("/generate", body(f"Tale {n}", **LONG)) for n in range(2)]
    seen = await asyncio.gather(*(exchange.tokens(5) for exchange in streams))
    assert all(count >= 5 for count in seen)
    return [*streams, *whole]


async def break_engine(server: ServerProcess, number: signal.Signals) -> tuple[float, list[int]]:
    """Signal the engine mid-stream; seconds until every client knew, and health seen meanwhile."""
    clients = await start_clients(client_of(server))
    engine_of(server).send_signal(number)
    broken_s = time.monotonic()
    replies = await asyncio.gather(*(exchange.reply() for exchange in clients))
    told_s = time.monotonic() - broken_s
    health = server.health()
    for reply in replies[:4]:
        last = reply.events()[-1].data
        assert last["error_type"] == "generation"
        assert last["error"].startswith("Request failed during generation: ")
        assert reply.complete
    for reply in replies[4:]:
        assert reply.status == 424
        assert reply.json()["error_type"] == "generation"
    return told_s, [] if health is None else [health]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_engine_fails_everything_and_ends_the_server(
    tmp_path: Path, tiny_model: Path, number: signal.Signals
) -> None:
    with make_server(tmp_path, tiny_model, "--heartbeat-timeout", "3") as server:
        told_s, health = run(break_engine(server, number))
        exit_code = server.wait(20.0)
        log = server.log()
        survivors = server.survivors()
    assert told_s < 10
    assert health == [503]
    assert exit_code == ENGINE_DIED
    assert not survivors
    assert log.count("CRITICAL") == 1
    assert "Traceback" not in log


async def drain(server: ServerProcess) -> tuple[list[int], int | None]:
    """Signal while four streams run; how many tokens each gave, and health meanwhile."""
    client = client_of(server)
    clients = await start_clients(client)
    server.send(signal.SIGTERM)
    health = await asyncio.to_thread(server.health)
    while health == 200 and not all(exchange.ended.is_set() for exchange in clients[:4]):
        health = await asyncio.to_thread(server.health)  # the signal may still be on its way
    replies = await asyncio.gather(*(exchange.reply() for exchange in clients))
    counts = [len(ids(reply)) for reply in replies[:4]]
    assert all(reply.status == 200 for reply in replies)
    return counts, health


@pytest.mark.slow
def test_sigterm_lets_streams_finish(tmp_path: Path, tiny_model: Path) -> None:
    with make_server(tmp_path, tiny_model) as server:
        counts, health = run(drain(server))
        exit_code = server.wait(10.0)
        log = server.log()
        survivors = server.survivors()
    assert counts == [LONG["max_new_tokens"]] * 4
    assert health == 503  # a listener that is closed at once would tell a balancer nothing
    assert exit_code == 0
    assert not survivors
    assert "ERROR" not in log


@pytest.mark.slow
def test_a_second_sigterm_ends_it_now(tmp_path: Path, slow_model: Path) -> None:
    async def signal_twice(server: ServerProcess) -> float:
        exchange = await open_stream(client_of(server), "Story", **LONG)
        assert await exchange.tokens(3) >= 3
        server.send(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert not exchange.ended.is_set()
        server.send(signal.SIGTERM)
        sent_s = time.monotonic()
        last = (await exchange.reply()).events()[-1].data
        assert last["error_type"] == "generation"
        return sent_s

    with make_server(tmp_path, slow_model) as server:
        sent_s = run(signal_twice(server))
        exit_code = server.wait(10.0)
        took_s = time.monotonic() - sent_s
        survivors = server.survivors()
    assert took_s < 2
    assert exit_code == 0
    assert not survivors


@pytest.mark.slow
def test_a_lost_server_takes_its_engine_along(tmp_path: Path, tiny_model: Path) -> None:
    with make_server(tmp_path, tiny_model) as server:
        run(generate(client_of(server), "Story", max_new_tokens=4))
        engine = engine_of(server)
        server.send(signal.SIGKILL)
        server.wait(5.0)
        engine.wait(10.0)
        assert not server.survivors()
