"""Clients that vanish: queued, in prefill, mid-stream, some of them not streaming.

Counts what the engine still computes for nobody. One step gives a sequence at most one token, so
the steps that run after the sockets were closed bound the tokens of every single request.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tiercel.bench.client import POLL_S, RUNNING, Client, Exchange
from tiercel.bench.prefix import first_token_s
from tiercel.bench.prompts import PromptMaker
from tiercel.bench.report import Figure, Report

USED_BLOCKS = 'tiercel_kv_blocks{state="used"}'
DECODE_STEPS = 'tgi_batch_inference_count{method="decode"}'
PREFILL_STEPS = 'tgi_batch_inference_count{method="prefill"}'
QUEUED = "tgi_queue_size"
FEW_TOKENS = 256
# After a client left in prefill: the step that runs, one that was planned behind it, and one that
# ended between the last count and the drop.
LATE_STEPS = 3
NOT_STREAMING = 3  # every third client of each kind


@dataclass(frozen=True)
class Crowd:
    """How many clients drop in which state. The server needs `running + 1` rows, no more."""

    running: int = 67
    prefill: int = 66
    queued: int = 67
    solo: int = 10  # beforehand, one at a time, each observed exactly
    solo_prefill: int = 10  # the same, in prefill
    prompt_tokens: int = 1_500
    new_tokens: int = 1_900  # of those that run; the others ask for few

    @property
    def rows(self) -> int:
        return self.running + 1


async def measure_disconnect(
    client: Client, model: str, read_log: Callable[[], str] | None, crowd: Crowd | None = None
) -> Report:
    """Drop the clients and watch. Prefill runs for one or two prompts at a time, so those clients
    come and go one after the other while the others run; all the rest drop at one instant. Among
    others a prefill that goes on for nobody cannot be told from theirs: so it is also looked for
    on the idle server. Without `read_log` there is no figure of errors in the log.
    """
    crowd = Crowd() if crowd is None else crowd
    maker = await PromptMaker.for_server(client, seed=4)
    excess = [await _drop_alone(client, maker, 3 + turn) for turn in range(crowd.solo)]
    whole, excess_prefill = await drop_in_prefill_alone(client, maker, crowd)
    running = await _start_running(client, maker, crowd)
    in_prefill, last = await _drop_in_prefill(client, maker, crowd)
    queued = [await _open(client, maker, n, 16, FEW_TOKENS) for n in range(crowd.queued)]
    await client.wait_for_metric(QUEUED, lambda queued: queued >= crowd.queued)

    everyone = [*running, last, *queued]
    random.Random(0).shuffle(everyone)
    before = await client.metrics()
    _still_waiting(everyone)
    dropped_s = time.perf_counter()
    for exchange in everyone:
        exchange.drop()
    free_s = await _until_free(client, dropped_s)
    await asyncio.sleep(1.0)
    after = await client.metrics()

    report = Report("disconnect", model, rounds=[{"tokens after a drop, alone": n} for n in excess])
    report.rounds += [{"steps after a drop in prefill, alone": n} for n in excess_prefill]
    total = len(everyone) + in_prefill + crowd.solo + len(excess_prefill)
    leaked = after[USED_BLOCKS]
    report.figures += [
        Figure("clients dropped", total, ""),
        Figure("of these in prefill", in_prefill + 1, "", at_least=0.9 * crowd.prefill),
        Figure("of these queued", before[QUEUED], "", at_least=crowd.queued),
        Figure("tokens after a drop, alone, most", max(excess, default=0), "", at_most=2),
        *_prefill_figures(whole, excess_prefill, crowd),
        Figure("steps after all dropped", _steps(after) - _steps(before), "", at_most=2),
        Figure("until all blocks were free", free_s, "s", at_most=2.0),
        Figure("blocks not free in the end", leaked, "", at_most=0),
    ]
    report.figures.append(_log_figure(read_log))
    return report


def _log_figure(read_log: Callable[[], str] | None) -> Figure:
    if read_log is None:
        return Figure("logs seen", 0, "")
    errors = len(error_lines(read_log()))
    return Figure("lines with errors in the log", errors, "", at_most=0)


def _prefill_figures(whole: int, excess: list[int], crowd: Crowd) -> list[Figure]:
    """Nothing is demanded where a prompt takes so few steps that dropping it shows nothing."""
    return [
        Figure(
            "dropped in prefill, alone",
            len(excess),
            "",
            at_least=0.5 * crowd.solo_prefill if whole > LATE_STEPS + 2 else None,
        ),
        Figure("steps of a whole prompt, alone", whole, ""),
        Figure(
            "steps after a drop in prefill, alone, most",
            max(excess, default=0),
            "",
            at_most=LATE_STEPS,
        ),
    ]


async def _drop_alone(client: Client, maker: PromptMaker, after_tokens: int) -> int:
    """One client on an idle server: how many tokens were computed that it never received."""
    before = await client.metrics()
    exchange = await client.open("/generate_stream", maker.payload(16, 1_000))
    await exchange.tokens(after_tokens)
    exchange.drop()
    received = len((await exchange.reply()).token_times())
    await asyncio.sleep(0.5)
    after = await client.metrics()
    return int(_steps(after) - _steps(before)) - received


async def drop_in_prefill_alone(
    client: Client, maker: PromptMaker, crowd: Crowd
) -> tuple[int, list[int]]:
    """On an idle server: the steps of a whole prompt with one token, and those that were still
    computed for each client that left after the first of them.
    """
    if not crowd.solo_prefill:
        return 0, []
    before = await client.metrics()
    await first_token_s(client, maker.payload(crowd.prompt_tokens, 1))
    await asyncio.sleep(0.5)
    whole = int(_steps(await client.metrics()) - _steps(before))
    excess = []
    for number in range(crowd.solo_prefill if whole > LATE_STEPS + 2 else 0):
        before = seen = await client.metrics()
        exchange = await _open(client, maker, number, crowd.prompt_tokens, FEW_TOKENS)
        while _steps(seen) == _steps(before):
            seen = await client.metrics()
            _still_waiting([exchange])
        exchange.drop()
        if exchange.tokens_seen == 0:
            await asyncio.sleep(0.5)
            excess.append(int(_steps(await client.metrics()) - _steps(seen)))
    return whole, excess


async def _start_running(client: Client, maker: PromptMaker, crowd: Crowd) -> list[Exchange]:
    opened = [await _open(client, maker, n, 16, crowd.new_tokens) for n in range(crowd.running)]
    streams = [exchange for n, exchange in enumerate(opened) if n % NOT_STREAMING]
    await asyncio.gather(*(stream.tokens(3) for stream in streams))
    await client.wait_for_metric(RUNNING, lambda running: running >= crowd.running)
    return opened


async def _drop_in_prefill(
    client: Client, maker: PromptMaker, crowd: Crowd
) -> tuple[int, Exchange]:
    """Send and drop prompts among the running streams; how many had no token, and one more that
    is in prefill still.
    """
    # The shortest of three: after a stalled one, prompts would have their token before they drop.
    whole_s = min(
        [await first_token_s(client, maker.payload(crowd.prompt_tokens, 1)) for _ in range(3)]
    )
    moments = random.Random(1)
    without_token = 0
    for number in range(crowd.prefill - 1):
        exchange = await _open(client, maker, number, crowd.prompt_tokens, FEW_TOKENS)
        await asyncio.sleep(moments.uniform(0.15, 0.7) * whole_s)
        _still_waiting([exchange])
        without_token += exchange.tokens_seen == 0
        exchange.drop()
    last = await _open(client, maker, 1, crowd.prompt_tokens, FEW_TOKENS)
    await client.wait_for_metric(RUNNING, lambda running: running >= crowd.rows)
    return without_token, last


def _still_waiting(exchanges: list[Exchange]) -> None:
    """Raises RuntimeError when one has its answer already: dropping it would prove nothing."""
    for exchange in exchanges:
        if exchange.ended.is_set():
            raise RuntimeError("a client was answered, or refused, before it could leave")


async def _open(
    client: Client, maker: PromptMaker, number: int, tokens: int, new_tokens: int
) -> Exchange:
    path = "/generate_stream" if number % NOT_STREAMING else "/generate"
    return await client.open(path, maker.payload(tokens, new_tokens))


async def _until_free(client: Client, since_s: float, timeout_s: float = 30.0) -> float:
    """Seconds from `since_s` until every block is free; the time waited when that never happens."""
    while (waited_s := time.perf_counter() - since_s) < timeout_s:
        metrics = await client.metrics()
        if not metrics[USED_BLOCKS] and not metrics.get(QUEUED):
            return time.perf_counter() - since_s
        await asyncio.sleep(POLL_S)
    return waited_s


def _steps(metrics: dict[str, float]) -> float:
    return metrics.get(DECODE_STEPS, 0.0) + metrics.get(PREFILL_STEPS, 0.0)


def error_lines(log: str) -> list[str]:
    """Lines of a server's log that report an error."""
    marks = ("ERROR", "CRITICAL", "Traceback")
    return [line for line in log.splitlines() if any(mark in line for mark in marks)]
