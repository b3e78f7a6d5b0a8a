"""Each of 32 concurrent requests gives the tokens of its solo run, preemption or not (float32)."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from support.client import client_of, ids, run, stream
from support.server import make_server
from tiercel.bench.client import Client

REQUESTS = 32
POOL_TOKENS = 1_024  # 64 blocks; the requests together want more than three times as many
STATES = ("used", "cached", "free")

TEXT = """
Fellow citizens of the Senate and of the House of Representatives: in the discharge of my duty I
give to the Congress information of the state of the Union. The harvests have been abundant, the
public revenue has exceeded the estimate, and our relations with foreign powers remain those of
peace. Call me Ishmael. Some years ago, having little or no money in my purse, I thought I would
sail about a little and see the watery part of the world. It is a way I have of driving off the
spleen. The report of the Secretary of the Treasury will exhibit in detail the state of the
finances, the sums paid upon the public debt, and the measures that commerce and the navy require.
"""


def make_requests() -> list[tuple[str, dict[str, Any]]]:
    """Prompts of 5 to about 250 tokens, some with a common beginning; every second one sampled."""
    draw = random.Random(0)
    words = TEXT.split()
    requests: list[tuple[str, dict[str, Any]]] = []
    for number in range(REQUESTS):
        start = 0 if number % 4 == 0 else draw.randrange(len(words) - 10)
        length = draw.choice((4, 12, 40, 110))
        parameters: dict[str, Any] = {"max_new_tokens": draw.choice((24, 60, 96))}
        if number % 2:
            parameters |= {"seed": draw.getrandbits(64), "temperature": draw.choice((0.7, 1.3))}
            parameters |= draw.choice(({}, {"top_k": 40}, {"top_p": 0.9}, {"typical_p": 0.8}))
        elif number % 3 == 0:
            parameters |= {"repetition_penalty": 1.2, "frequency_penalty": 0.5}
        requests.append((" ".join(words[start : start + length]), parameters))
    return requests


async def together(client: Client) -> tuple[list[list[int]], dict[str, float]]:
    calls = (stream(client, inputs, **parameters) for inputs, parameters in make_requests())
    replies = await asyncio.gather(*calls)
    return [ids(reply) for reply in replies], await client.metrics()


async def one_by_one(client: Client) -> list[list[int]]:
    return [
        ids(await stream(client, inputs, **parameters)) for inputs, parameters in make_requests()
    ]


@pytest.mark.slow
def test_concurrent_requests_equal_their_solo_runs(tmp_path: Path) -> None:
    exact = ("--dtype", "float32")
    with make_server(tmp_path, None, *exact, "--no-prefix-caching") as server:
        alone = run(one_by_one(client_of(server)))
    small_pool = ("--max-batch-total-tokens", str(POOL_TOKENS), "--max-total-tokens", "512")
    with make_server(tmp_path, None, *exact, *small_pool) as server:
        crowded, metrics = run(together(client_of(server)))
    assert metrics["tiercel_preemptions_total"] > 0
    blocks = {state: metrics[f'tiercel_kv_blocks{{state="{state}"}}'] for state in STATES}
    assert sum(blocks.values()) == POOL_TOKENS / 16
    assert blocks["used"] == 0
    assert sum(len(tokens) for tokens in alone) > 1_000
    for number, (lonely, among) in enumerate(zip(alone, crowded, strict=True)):
        assert among == lonely, f"request {number}"
