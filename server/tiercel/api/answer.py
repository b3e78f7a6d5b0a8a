"""An answer in one piece: collect the whole generation, unless its client leaves meanwhile."""

import asyncio
from collections.abc import Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from tiercel.api.edge import Edge, outcome
from tiercel.api.encoding import response_json, sequence_json
from tiercel.api.generation import GeneratedToken, Generation
from tiercel.api.record import RequestRecord
from tiercel.api.schema import GenerateRequest
from tiercel.api.several import several
from tiercel.api.validation import Prompt, check_shape

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sequence:
    """One finished generation with all of its tokens."""

    generation: Generation
    tokens: list[GeneratedToken]

    @property
    def mean_logprob(self) -> float:
        """What `best_of` compares."""
        return sum(token.logprob for token in self.tokens) / max(1, len(self.tokens))


def ranked(sequences: Iterable[Sequence]) -> list[Sequence]:
    """Best first. Of equal ones the first wins: `sorted` is stable."""
    return sorted(sequences, key=lambda each: -each.mean_logprob)


async def native_answer(
    edge: Edge, body: GenerateRequest, record: RequestRecord, *, full_text: bool
) -> tuple[str, dict[str, str]]:
    """The JSON of one generate response, and its timing headers.

    Raises RequestError. Cancelling it aborts.
    """
    with outcome(record):
        count = check_shape(body.parameters, edge.options, stream=False)
        with edge.admission.permits(count):
            request = await edge.validated(Prompt(body.inputs), body.parameters, record)
            sequences = await collected([edge.start(request, record, nth) for nth in range(count)])
        best, *others = ranked(sequences)
        return _json(best, others, full_text=full_text), record.headers(best.generation.record)


def _json(best: Sequence, others: list[Sequence], *, full_text: bool) -> str:
    generation = best.generation
    worse = [
        sequence_json(each.generation, each.tokens, each.generation.full_text(by_default=full_text))
        for each in others
    ]
    return response_json(
        generation,
        best.tokens,
        generation.full_text(by_default=full_text),
        details=generation.details,
        others=",".join(worse),
    )


async def collected(generations: list[Generation]) -> list[Sequence]:
    """All generations to their ends, in the order given. Raises RequestError."""
    sequences = [Sequence(generation, []) for generation in generations]
    async with aclosing(several(generations)) as pieces:
        async for index, tokens in pieces:
            sequences[index].tokens.extend(tokens)
    return sequences


async def unless_gone(receive: Receive, work: Coroutine[object, object, Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves: then ClientDisconnect.

    To be called when the request's body has been read: `receive` then only tells of the end.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        watcher.cancel()
        task.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
