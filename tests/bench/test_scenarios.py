"""The scenarios against a server whose timing is known."""

import asyncio
import time
from typing import Any

import pytest

from support.scripted_server import ScriptedServer
from tiercel.bench.client import Client
from tiercel.bench.interference import Limits, measure_interference
from tiercel.bench.prefix import measure_prefix
from tiercel.bench.prompts import PromptMaker
from tiercel.bench.report import Report
from tiercel.bench.throughput import StreamFailed, measure_throughput


def figure(report: Report, name: str) -> float:
    return next(figure.value for figure in report.figures if figure.name == name)


def test_throughput_counts_what_arrives_in_the_window() -> None:
    """Every stream gives 50 tokens/s whatever the others do, so eight give eight times as many."""

    async def run() -> Report:
        async with ScriptedServer(gap_s=lambda: 0.02) as server:
            client = Client("127.0.0.1", server.port)
            return await measure_throughput(client, "m", streams=8, rounds=2, window_s=0.6)

    report = asyncio.run(run())
    assert 25 < figure(report, "1 stream") <= 52
    assert 5 < figure(report, "ratio of the medians") < 12
    assert len(report.rounds) == 2


def test_throughput_fails_when_a_stream_breaks_off() -> None:
    async def run() -> None:
        async with ScriptedServer(break_after=5, gap_s=lambda: 0.005) as server:
            client = Client("127.0.0.1", server.port)
            await measure_throughput(client, "m", streams=2, rounds=1, window_s=0.3)

    with pytest.raises(StreamFailed, match="broke"):
        asyncio.run(run())


def test_prefix_compares_a_prompt_with_itself() -> None:
    seen: set[str] = set()

    def first_s(payload: dict[str, Any]) -> float:
        known = payload["inputs"] in seen
        seen.add(payload["inputs"])
        return 0.02 if known else 0.1

    async def run() -> Report:
        async with ScriptedServer(first_s=first_s) as server:
            return await measure_prefix(
                Client("127.0.0.1", server.port), "m", rounds=3, at_most=0.5
            )

    report = asyncio.run(run())
    assert report.passed
    assert 0.15 < figure(report, "median ratio") < 0.4
    assert len(seen) == 5  # two to warm up, then a fresh one for every round


def test_interference_sees_the_gap_and_the_late_first_token() -> None:
    """While the long prompt is answered, tokens come five times slower."""
    server = ScriptedServer()
    busy_until_s = 0.0

    def first_s(payload: dict[str, Any]) -> float:
        nonlocal busy_until_s
        if payload["parameters"]["truncate"] < 1000:
            return 0.0
        if server.streaming == 1:
            return 0.15
        busy_until_s = time.perf_counter() + 0.3
        return 0.3

    server.first_s = first_s
    server.gap_s = lambda: 0.05 if time.perf_counter() < busy_until_s else 0.01

    async def run() -> Report:
        async with server:
            client = Client("127.0.0.1", server.port)
            limits = Limits(gap=3.0, first_token=3.0)
            return await measure_interference(client, "m", streams=3, rounds=1, limits=limits)

    report = asyncio.run(run())
    verdicts = {figure.name: figure.passed for figure in report.figures}
    assert 3.2 < figure(report, "gap ratio, worst round") < 7
    assert 1.5 < figure(report, "first token, median") < 2.6
    assert verdicts["gap ratio, median of rounds"] is False
    assert verdicts["first token, median"] is True
    assert not report.passed


def test_prompts_are_fresh_and_long_enough() -> None:
    async def run() -> PromptMaker:
        async with ScriptedServer() as server:  # its /tokenize counts two tokens per word
            return await PromptMaker.for_server(Client("127.0.0.1", server.port), seed=5)

    maker = asyncio.run(run())
    texts = [maker.text(512) for _ in range(20)]
    assert len(set(texts)) == 20
    assert all(2 * len(text.split()) >= 512 for text in texts)
    assert maker.payload(512, 3)["parameters"] == {"truncate": 512, "max_new_tokens": 3}
