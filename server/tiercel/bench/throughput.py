"""Tokens per second of one stream against many, in alternating rounds on one warm server."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator
from statistics import median
from typing import Any

from tiercel.bench.client import Client, Exchange
from tiercel.bench.prompts import PromptMaker
from tiercel.bench.report import Figure, Report

PROMPT_TOKENS = 16
NEW_TOKENS = 256


class StreamFailed(RuntimeError):
    """A stream broke off or answered with an error, so its round measures nothing."""


async def measure_throughput(
    client: Client,
    model: str,
    *,
    streams: int = 16,
    rounds: int = 5,
    window_s: float = 6.0,
    at_least: float | None = None,
) -> Report:
    """Ratio of the median rates. A round counts the tokens that arrive in `window_s` seconds in
    which all streams run; a stream that ends is replaced at once, its prefill counts as load.
    """
    maker = await PromptMaker.for_server(client, seed=1)
    payloads = maker.payloads(PROMPT_TOKENS, NEW_TOKENS)
    await _window(client, payloads, streams, 1.0)
    report = Report("throughput", model)
    for _ in range(rounds):
        one = await _window(client, payloads, 1, window_s)
        many = await _window(client, payloads, streams, window_s)
        report.rounds.append({"one": one, "many": many, "ratio": many / one})
    one, many = (median(entry[name] for entry in report.rounds) for name in ("one", "many"))
    report.figures += [
        Figure("1 stream", one, "tokens/s"),
        Figure(f"{streams} streams", many, "tokens/s"),
        Figure("ratio of the medians", many / one, "x", at_least=at_least),
    ]
    return report


async def _window(
    client: Client, payloads: Iterator[dict[str, Any]], streams: int, window_s: float
) -> float:
    """Tokens per second that arrive while `streams` streams are kept running."""
    opened: list[Exchange] = []
    running: dict[int, Exchange] = {}

    async def keep_one(slot: int) -> None:
        while True:
            running[slot] = exchange = await client.open("/generate_stream", next(payloads))
            opened.append(exchange)
            await exchange.ended.wait()

    keepers = [asyncio.create_task(keep_one(slot)) for slot in range(streams)]
    try:
        await _all_started(keepers, running, streams)
        start_s = time.perf_counter()
        await asyncio.wait(keepers, timeout=window_s, return_when=asyncio.FIRST_EXCEPTION)
        stop_s = time.perf_counter()
    finally:
        for keeper in keepers:
            keeper.cancel()
        ends = await asyncio.gather(*keepers, return_exceptions=True)
        for exchange in running.values():
            exchange.drop()
    raise_first(ends)
    await client.wait_until_idle()
    replies = [await exchange.reply() for exchange in opened]
    for exchange, reply in zip(opened, replies, strict=True):
        if reply.status != 200 or b'"error_type"' in reply.body:
            raise StreamFailed(f"status {reply.status}: {reply.body[:200]!r}")
        if not exchange.dropped and not reply.complete:
            raise StreamFailed("the server broke a stream off")
    times = sorted(at for reply in replies for at in reply.token_times())
    return (bisect_left(times, stop_s) - bisect_left(times, start_s)) / (stop_s - start_s)


async def _all_started(
    keepers: list[asyncio.Task[None]], running: dict[int, Exchange], streams: int
) -> None:
    """Wait until every slot has a stream that has given two tokens."""
    while len(running) < streams:
        raise_first([keeper.exception() for keeper in keepers if keeper.done()])
        await asyncio.sleep(0.002)
    await asyncio.gather(*(exchange.tokens(2) for exchange in list(running.values())))


def raise_first(ends: list[Any]) -> None:
    """Raise the first error among the results of tasks; being cancelled is not one."""
    for end in ends:
        if isinstance(end, Exception):
            raise end
