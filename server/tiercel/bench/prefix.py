"""Time to the first token of a prompt the server has not seen, and of the same prompt again."""

from statistics import median

from tiercel.bench.client import Client
from tiercel.bench.prompts import PromptMaker
from tiercel.bench.report import Figure, Report


async def measure_prefix(
    client: Client,
    model: str,
    *,
    prompt_tokens: int = 512,
    rounds: int = 15,
    at_most: float | None = None,
) -> Report:
    """Median of the rounds' ratios second / first, on an otherwise idle server."""
    maker = await PromptMaker.for_server(client, seed=2)
    for _ in range(2):
        await first_token_s(client, maker.payload(prompt_tokens, 2))
    report = Report("prefix", model)
    for _ in range(rounds):
        payload = maker.payload(prompt_tokens, 2, details=True)
        first = await first_token_s(client, payload)
        second = await first_token_s(client, payload)
        entry = {"first_ms": first * 1e3, "second_ms": second * 1e3, "ratio": second / first}
        report.rounds.append(entry)
    for name, unit in (("first_ms", "ms"), ("second_ms", "ms")):
        report.figures.append(Figure(name, median(e[name] for e in report.rounds), unit))
    ratio = median(entry["ratio"] for entry in report.rounds)
    report.figures.append(Figure("median ratio", ratio, "x", at_most=at_most))
    return report


async def first_token_s(client: Client, payload: dict[str, object]) -> float:
    """Seconds from the request's last byte to the first token's event; waits for the end.

    Raises ValueError when the stream gives no token.
    """
    reply = await client.post("/generate_stream", payload)
    times = reply.token_times()
    if not times:
        raise ValueError(f"no token came: status {reply.status}, {reply.body[:200]!r}")
    return times[0] - reply.sent_s
