"""What a long prompt does to streams that run, and what they do to its first token."""

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from tiercel.bench.client import Client, Exchange, Reply
from tiercel.bench.prefix import first_token_s
from tiercel.bench.prompts import PromptMaker
from tiercel.bench.report import Figure, Report

SETTLE_TOKENS = 8  # tokens of each stream before anything counts
BASELINE_TOKENS = 40  # tokens of each stream before the long prompt arrives
AFTER_TOKENS = 8  # tokens of each stream after the long prompt's answer


@dataclass(frozen=True)
class Limits:
    """`gap`: largest gap over the median gap. `first_token`: among streams over idle."""

    gap: float | None = None
    first_token: float | None = None


async def measure_interference(
    client: Client,
    model: str,
    *,
    streams: int = 8,
    prompt_tokens: int = 1_500,
    rounds: int = 5,
    limits: Limits | None = None,
) -> Report:
    """Rounds of: the prompt alone, then a fresh one among `streams` running streams.

    The median gap is taken before the prompt arrives, which is the stricter reading; the largest
    gap is the largest of any stream from the prompt's arrival until after its answer. What the
    machine does to the largest gap by itself is seen before the prompt's arrival. Alone, the
    prompt is chunked by `--max-batch-prefill-tokens` only, and where it takes more than about 5 s.
    """
    limits = Limits() if limits is None else limits
    maker = await PromptMaker.for_server(client, seed=3)
    await _among_streams(client, maker, streams, prompt_tokens)
    report = Report("interference", model)
    for _ in range(rounds):
        alone = await first_token_s(client, maker.payload(prompt_tokens, 2))
        entry = await _among_streams(client, maker, streams, prompt_tokens)
        entry |= {"alone_ms": alone * 1e3, "first_token_ratio": entry["among_ms"] / alone / 1e3}
        report.rounds.append(entry)
    units = {"median_gap_ms": "ms", "largest_gap_ms": "ms", "alone_ms": "ms", "among_ms": "ms"}
    for name, unit in units.items():
        report.figures.append(Figure(name, median(e[name] for e in report.rounds), unit))
    gaps = [entry["gap_ratio"] for entry in report.rounds]
    quiet = [entry["quiet_gap_ratio"] for entry in report.rounds]
    firsts = [entry["first_token_ratio"] for entry in report.rounds]
    report.figures += [
        Figure("gap ratio, median of rounds", median(gaps), "x", at_most=limits.gap),
        Figure("gap ratio, worst round", max(gaps), "x", at_most=limits.gap),
        Figure("the same before the prompt came, worst", max(quiet), "x"),
        Figure("first token, median", median(firsts), "x", at_most=limits.first_token),
        Figure("first token, worst round", max(firsts), "x"),
    ]
    return report


async def _among_streams(
    client: Client, maker: PromptMaker, streams: int, prompt_tokens: int
) -> dict[str, float]:
    """One round: gaps of the running streams and the prompt's time to its first token."""
    running: list[Exchange] = []
    try:
        while len(running) < streams:
            running.append(await client.open("/generate_stream", maker.payload(16, 1_500)))
        await _wait_for_more(running, BASELINE_TOKENS + SETTLE_TOKENS)
        prompt = await client.post("/generate_stream", maker.payload(prompt_tokens, 2))
        await _wait_for_more(running, AFTER_TOKENS)
    finally:
        for exchange in running:
            exchange.drop()
    await client.wait_until_idle()
    replies = [await exchange.reply() for exchange in running]
    return _figures(replies, prompt)


async def _wait_for_more(running: list[Exchange], tokens: int) -> None:
    targets = [exchange.tokens_seen + tokens for exchange in running]
    waits = (exchange.tokens(target) for exchange, target in zip(running, targets, strict=True))
    await asyncio.gather(*waits)
    if any(exchange.ended.is_set() for exchange in running):
        raise RuntimeError("a running stream ended before the prompt was answered")


def _figures(replies: list[Reply], prompt: Reply) -> dict[str, float]:
    before: list[float] = []
    after: list[float] = []
    for reply in replies:
        for earlier, later in pairwise(reply.token_times()[SETTLE_TOKENS:]):
            (before if later < prompt.sent_s else after).append(later - earlier)
    times = prompt.token_times()
    if not times or not before or not after:
        raise RuntimeError(f"nothing to measure: {prompt.body[:200]!r}")
    return {
        "median_gap_ms": median(before) * 1e3,
        "largest_gap_ms": max(after) * 1e3,
        "quiet_gap_ratio": max(before) / median(before),  # the machine's own noise
        "gap_ratio": max(after) / median(before),
        "among_ms": (times[0] - prompt.sent_s) * 1e3,
    }
