"""The table of running generations: delivery, merging, cancellation, the end of the engine."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from msgspec.structs import replace

from tiercel.engine import streams
from tiercel.engine.streams import StreamTable
from tiercel.wire.messages import Abort, Submit, ToEngine, Token, TokenDelta
from tiercel.wire.request import GenerationRequest, SamplingParams


def _request(request_id: int) -> GenerationRequest:
    return GenerationRequest(request_id, [1, 2], 8, SamplingParams(), [])


def _delta(request_id: int, *ids: int, finish: str | None = None) -> TokenDelta:
    return TokenDelta(request_id, [Token(i, -0.5) for i in ids], finish)


async def _start(table: StreamTable, request_id: int) -> "asyncio.Task[list[TokenDelta]]":
    async def collect() -> list[TokenDelta]:
        return [delta async for delta in table.generate(_request(request_id))]

    task = asyncio.ensure_future(collect())
    await asyncio.sleep(0)
    return task


def _run(scenario: Callable[[StreamTable, list[ToEngine]], Awaitable[None]]) -> None:
    async def main() -> None:
        sent: list[ToEngine] = []
        await scenario(StreamTable(sent.append), sent)

    asyncio.run(main())


def test_a_finished_stream_sends_no_abort() -> None:
    async def scenario(table: StreamTable, sent: list[ToEngine]) -> None:
        task = await _start(table, 1)
        table.deliver([_delta(1, 5)])
        await asyncio.sleep(0)
        table.deliver([_delta(1, 6, finish="length")])
        deltas = await task
        assert [token.id for delta in deltas for token in delta.tokens] == [5, 6]
        assert [type(message) for message in sent] == [Submit]
        assert len(table) == 0

    _run(scenario)


def test_a_lagging_reader_gets_its_tokens_together() -> None:
    async def scenario(table: StreamTable, sent: list[ToEngine]) -> None:
        task = await _start(table, 1)
        table.deliver([_delta(1, 5)])
        table.deliver([_delta(1, 6)])
        table.deliver([_delta(1, 7, finish="eos_token")])
        (delta,) = await task
        assert [token.id for token in delta.tokens] == [5, 6, 7]
        assert delta.finish_reason == "eos_token"

    _run(scenario)


def test_what_comes_with_the_first_delta_outlives_merging() -> None:
    first = TokenDelta(
        1, [Token(5, -0.5)], queue_s=0.25, cached_tokens=16, prompt_logprobs=[None, -1.0],
        prompt_top_ids=[[], [3]], prompt_top_logprobs=[[], [-2.0]],
    )  # fmt: skip

    async def scenario(table: StreamTable, _: list[ToEngine]) -> None:
        task = await _start(table, 1)
        table.deliver([first])
        table.deliver([_delta(1, 6, finish="length")])
        (delta,) = await task
        merged = [*first.tokens, Token(6, -0.5)]
        assert delta == replace(first, tokens=merged, finish_reason="length")

    _run(scenario)


def test_closing_early_aborts_once() -> None:
    async def scenario(table: StreamTable, sent: list[ToEngine]) -> None:
        stream: AsyncIterator[TokenDelta] = table.generate(_request(3))
        pending = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        table.deliver([_delta(3, 5)])
        await pending
        await stream.aclose()  # type: ignore[attr-defined]
        assert sent[1:] == [Abort([3])]
        table.deliver([_delta(3, 6)])  # late: dropped
        assert len(table) == 0

    _run(scenario)


def test_cancelling_the_waiting_task_aborts() -> None:
    async def scenario(table: StreamTable, sent: list[ToEngine]) -> None:
        task = await _start(table, 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sent[1:] == [Abort([4])]

    _run(scenario)


def test_a_dead_engine_ends_streams_and_later_requests() -> None:
    async def scenario(table: StreamTable, sent: list[ToEngine]) -> None:
        task = await _start(table, 1)
        table.deliver([_delta(1, 5)])
        table.fail_all("the engine process ended by signal SIGKILL")
        deltas = await task
        assert deltas[-1].error == "the engine process ended by signal SIGKILL"
        assert deltas[-1].error_type == "generation"
        later = await (await _start(table, 2))
        assert later[0].error is not None

    _run(scenario)


def test_a_reader_that_stopped_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SLOW_CLIENT_S", 0.0)

    async def scenario(table: StreamTable, sent: list[ToEngine]) -> None:
        stream = table.generate(_request(9))
        pending = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        table.deliver([_delta(9, 1)])
        await pending  # read once, then never again
        for _ in range(streams.MAX_BUFFERED_TOKENS + 5):
            table.deliver([_delta(9, 1)])
        assert Abort([9]) in sent
        last = await anext(stream)
        assert last.error == "the client reads too slowly"
        assert len(last.tokens) <= streams.MAX_BUFFERED_TOKENS + 1

    _run(scenario)
