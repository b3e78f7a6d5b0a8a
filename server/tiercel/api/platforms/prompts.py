"""Several prompts of one call, generated side by side: what Vertex's and KServe's routes share."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from tiercel.api.edge import Edge, outcome
from tiercel.api.generation import Generation
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


@dataclass
class _Running:
    """One sequence. A choice of a chat may decide only while it runs what its generation is."""

    source: Generation | Choice
    logprobs: float = 0.0

    @property
    def generation(self) -> Generation:
        source = self.source
        return source if isinstance(source, Generation) else source.generation

    @property
    def mean_logprob(self) -> float:
        return self.logprobs / max(1, self.generation.generated_tokens)


async def texts(
    edge: Edge, record: RequestRecord, asked: Sequence[Asked | ChatRequest]
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
            running = [sequence for group in groups for sequence in group]
            sources: list[Deltas[object]] = [each.source for each in running]
            async with aclosing(several(sources)) as pieces:
                async for index, piece in pieces:
                    if isinstance(piece, list):
                        running[index].logprobs += sum(token.logprob for token in piece)
        best = [max(group, key=lambda each: each.mean_logprob) for group in groups]
        return [each.generation.full_text(by_default=False) for each in best]


def _count(edge: Edge, asked: Asked | ChatRequest) -> int:
    if isinstance(asked, ChatRequest):
        return 1
    return check_shape(asked.parameters, edge.options, stream=False)


async def _group(
    edge: Edge, record: RequestRecord, asked: Asked | ChatRequest, count: int
) -> list[_Running]:
    """The sequences of one prompt, ready to run."""
    if isinstance(asked, ChatRequest):
        start = await chat_start(edge, asked.model_copy(update={"n": 1}), record)
        return [_Running(choice) for choice in start.choices]
    request = await edge.validated(asked.prompt, asked.parameters, record)
    return [_Running(edge.start(request, record, nth)) for nth in range(count)]
