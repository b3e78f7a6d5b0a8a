"""Several prompts of one call, generated side by side: what Vertex's and KServe's routes share."""

from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass

from tiercel.api.answer import Sequence, ranked
from tiercel.api.edge import Edge, outcome
from tiercel.api.generation import GeneratedToken, Generation
from tiercel.api.openai.chat_start import chat_start
from tiercel.api.openai.choices import Choice
from tiercel.api.openai.schema import ChatRequest
from tiercel.api.record import RequestRecord
from tiercel.api.schema import GenerateParameters
from tiercel.api.several import Deltas, several
from tiercel.api.validation import Prompt, check_shape
from tiercel.errors import BatchSizeExceeded


@dataclass(frozen=True)
class Asked:
    """One prompt and how to continue it."""

    prompt: Prompt
    parameters: GenerateParameters


async def texts(
    edge: Edge, record: RequestRecord, asked: Collection[Asked | ChatRequest]
) -> list[str]:
    """What was generated for each, the best of `best_of`. A permit for every sequence.

    Raises RequestError: of the first that fails, or before any has started.
    """
    with outcome(record):
        limit = edge.options.max_client_batch_size
        if len(asked) > limit:
            raise BatchSizeExceeded(limit, len(asked))
        counts = [_count(edge, each) for each in asked]
        with edge.admission.permits(sum(counts)):
            groups = [
                await _group(edge, record, each, count)
                for each, count in zip(asked, counts, strict=True)
            ]
            sources: list[Deltas[object]] = [source for group in groups for source in group]
            heard: list[list[GeneratedToken]] = [[] for _ in sources]
            async with aclosing(several(sources)) as pieces:
                async for index, piece in pieces:
                    if isinstance(piece, list):  # a chat's are pieces of its one choice
                        heard[index] += piece
        tokens = iter(heard)
        best = [
            ranked(Sequence(_generation(source), next(tokens)) for source in group)[0]
            for group in groups
        ]
        return [each.generation.full_text(by_default=False) for each in best]


def _generation(source: Generation | Choice) -> Generation:
    """A choice of a chat decides only while it runs what its generation is."""
    return source if isinstance(source, Generation) else source.generation


def _count(edge: Edge, asked: Asked | ChatRequest) -> int:
    if isinstance(asked, ChatRequest):
        return 1
    return check_shape(asked.parameters, edge.options, stream=False)


async def _group(
    edge: Edge, record: RequestRecord, asked: Asked | ChatRequest, count: int
) -> list[Generation | Choice]:
    """The sequences of one prompt, ready to run."""
    if isinstance(asked, ChatRequest):
        start = await chat_start(edge, asked.model_copy(update={"n": 1}), record)
        return [*start.choices]
    request = await edge.validated(asked.prompt, asked.parameters, record)
    return [edge.start(request, record, nth) for nth in range(count)]
