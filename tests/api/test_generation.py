"""One sequence at the edge, without HTTP: when the engine is told to stop."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from support.edge_server import TOKENIZER, ids, say
from support.scripted_engine import ScriptedEngine, speak
from tiercel.api.generation import Generation
from tiercel.api.identity import Identity
from tiercel.api.options import EdgeOptions
from tiercel.api.record import RequestRecord
from tiercel.api.validation import ValidatedRequest
from tiercel.telemetry.metrics import Metrics
from tiercel.wire.request import SamplingParams

REQUEST = ValidatedRequest(
    inputs="Hello",
    token_ids=ids("Hello"),
    max_new_tokens=50,
    judged_new_tokens=50,
    sampling=SamplingParams(),
    stop=(),
    return_full_text=None,
    details=False,
    prompt_logprobs=False,
)


def _generation(engine: ScriptedEngine, request: ValidatedRequest) -> Generation:
    metrics = Metrics()
    metrics.configure(EdgeOptions("m"))
    record = RequestRecord("/x", Identity("1"), metrics.requests)
    return Generation(request, engine, TOKENIZER, record.sequence(1))


def _run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


def test_the_sequence_is_aborted_before_its_last_tokens_are_handed_on() -> None:
    """A client that is slow to take the end keeps no row of the engine busy."""

    async def scenario() -> None:
        engine = ScriptedEngine(say(" a story of the sea and the ships"))
        generation = _generation(engine, replace(REQUEST, stop=("sea",)))
        async with aclosing(generation.deltas()) as deltas:
            async for _ in deltas:
                if generation.finish_reason is not None:
                    assert engine.aborted == [1]
                    return
        pytest.fail("the stop string was missed")

    _run(scenario)


@pytest.mark.parametrize("per_delta", [1, 7, 100])
def test_a_sequence_that_ends_by_itself_is_not_aborted(per_delta: int) -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(speak(ids(" a story"), per_delta=per_delta))
        generation = _generation(engine, REQUEST)
        tokens = [token async for delta in generation.deltas() for token in delta]
        assert len(tokens) == generation.generated_tokens == 50
        assert generation.finish_reason == "length"
        assert "".join(token.text for token in tokens) == generation.text()
        assert engine.aborted == []

    _run(scenario)


def test_closing_early_aborts() -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(say(" a story"))
        async with aclosing(_generation(engine, REQUEST).deltas()) as deltas:
            await anext(deltas)
        assert engine.aborted == [1]

    _run(scenario)
