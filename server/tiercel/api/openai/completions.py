"""`/v1/completions`: lists of prompts, several choices for each, with their logprobs or echoed."""

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial

from fastapi import FastAPI, Request, Response

from tiercel.api.answer import Sequence, collected, ranked, unless_gone
from tiercel.api.body import read_model
from tiercel.api.edge import Edge, outcome
from tiercel.api.generation import GeneratedToken, Generation, PrefillToken
from tiercel.api.openai.chat_schema import ERRORS
from tiercel.api.openai.choices import TextChoice, TextPiece, finish_reason
from tiercel.api.openai.completion_json import (
    choice_json,
    logprobs_json,
)
from tiercel.api.openai.completion_schema import CompletionRequest, CompletionResponse
from tiercel.api.openai.document import Head, head_fields, usage_json
from tiercel.api.openai.errors import DONE, error_events
from tiercel.api.openai.parameters import (
    check_choices,
    check_ranges,
    extras_of,
    generate_parameters,
)
from tiercel.api.openapi import events, takes
from tiercel.api.record import RequestRecord
from tiercel.api.several import several
from tiercel.api.stream import begun
from tiercel.api.validation import Prompt
from tiercel.errors import BatchSizeExceeded, SuffixNotSupported, ValidationError
from tiercel.text.detokenizer import Detokenizer

ROUTE = "/v1/completions"


class _Told:
    """Which tokens logprobs name: those whose text begins within the text that is shown.

    So neither the end of a sequence nor a hidden stop string; a token waits for its text.
    """

    def __init__(self) -> None:
        self._waiting: deque[GeneratedToken] = deque()
        self._shown = 0  # characters
        self._at = 0  # where the first one that waits begins

    def next(self, token: GeneratedToken) -> list[GeneratedToken]:
        """Those that have come into sight with this token."""
        if not token.special:
            self._waiting.append(token)
        self._shown += len(token.shown)
        told = []
        while self._waiting and self._at < self._shown:
            told.append(self._waiting.popleft())
            self._at += len(told[-1].text)
        return told


@dataclass
class _Choice:
    """One generation as one choice: what it begins with, and how far its text has come."""

    index: int
    generation: Generation
    beginning: str  # the prompt, where it is echoed
    offset: int = 0  # characters of text that logprobs have been made for
    prefill: list[PrefillToken] = field(default_factory=list)
    told: _Told = field(default_factory=_Told)


class CompletionRoutes:
    """Handlers over one edge."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def add_to(self, app: FastAPI) -> None:
        """Register the route."""
        app.add_api_route(
            ROUTE,
            self.completions,
            methods=["POST"],
            response_model=None,
            tags=["OpenAI"],
            summary="Continue one or several prompts; with `stream`, events",
            responses={200: {"model": CompletionResponse, **events("The answer")}, **ERRORS},
            openapi_extra=takes(CompletionRequest),
        )

    async def completions(self, request: Request) -> Response:
        """POST `/v1/completions`."""
        self._edge.check_serving()
        body = await read_model(request, CompletionRequest, self._edge.options.payload_limit)
        return await self.answer(request, body)

    async def answer(self, request: Request, body: CompletionRequest) -> Response:
        """The answer to a body that has been read, here or by another route."""
        options = self._edge.options
        record = self._edge.record(ROUTE, request.scope)
        characters = sum(len(prompt.text) for prompt in body.prompts)
        headers = {
            "x-compute-type": options.compute_type,
            "x-compute-characters": str(characters),
        }
        work = _Work(self._edge, body, record)
        if body.stream:
            failed = partial(error_events, route=ROUTE)
            return await begun(request.receive, work.events(), failed, options, lambda: headers)
        content = await unless_gone(request.receive, work.answer())
        headers |= record.headers()
        del headers["x-compute-time"]
        return Response(content.encode(), media_type="application/json", headers=headers)


class _Work:
    """One request, answered in one piece or as events."""

    def __init__(self, edge: Edge, body: CompletionRequest, record: RequestRecord) -> None:
        self._edge = edge
        self._body = body
        self._record = record
        fields = head_fields("cmpl-", edge.options.model_id, edge.options)
        self._head = Head("text_completion", "text_completion", fields)

    async def answer(self) -> str:
        """All choices in one document. Raises RequestError; cancelling it aborts."""
        body = self._body
        with outcome(self._record):
            with self._edge.admission.permits(self._permits()):
                generations = await self._generations()
                sequences = await collected(generations)
            size = body.sequences
            choices: list[str] = []
            for first in range(0, len(sequences), size):
                candidates = sequences[first : first + size]
                if size > body.choices:
                    candidates = ranked(candidates)
                for sequence in candidates[: body.choices]:
                    choices.append(self._choice_json(len(choices), sequence, first // size))
            return self._head.answer(choices, self._usage(generations))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """One event per token, then `[DONE]`. Raises RequestError. Closing it early aborts."""
        body = self._body
        with outcome(self._record):
            if body.sequences > body.choices:
                raise ValidationError("`best_of` must not be larger than `n` when streaming")
            with self._edge.admission.permits(self._permits()):
                generations = await self._generations()
                choices = [
                    _Choice(index, generation, self._beginning(index // body.choices))
                    for index, generation in enumerate(generations)
                ]
                async with aclosing(several(list(map(TextChoice, generations)))) as pieces:
                    async for index, piece in pieces:
                        yield self._chunks(choices[index], piece).encode()
            tail = self._head.chunk("", self._usage(generations)) if body.include_usage else ""
            yield (tail + DONE).encode()

    def _permits(self) -> int:
        """Refuses what no generation is needed for; returns the number of sequences."""
        body, options = self._body, self._edge.options
        if body.suffix is not None:
            raise SuffixNotSupported
        if len(body.prompt) > options.max_client_batch_size:
            raise BatchSizeExceeded(options.max_client_batch_size, len(body.prompt))
        check_ranges(body)
        if body.best_of is not None and body.best_of < body.choices:
            raise ValidationError("`best_of` must not be smaller than `n`")
        if body.max_tokens == 0 and not body.echo:
            raise ValidationError("`max_new_tokens` must be strictly positive without `echo`")
        sequences = len(body.prompt) * body.sequences
        check_choices(body, options, sequences=sequences)
        return sequences

    async def _generations(self) -> list[Generation]:
        body = self._body
        echoed = body.echo is True and body.logprobs is not None
        parameters = generate_parameters(
            body, max_new_tokens=1 if body.max_tokens == 0 else body.max_tokens,
            top_n_tokens=body.logprobs,
        )  # fmt: skip
        extras = replace(
            extras_of(body, self._edge.options),
            prompt_logprobs=echoed,
            prompt_top_n=(body.logprobs or 0) if echoed else 0,
        )
        requests = [
            await self._edge.validated(prompt, parameters, self._record, extras)
            for prompt in body.prompts
        ]
        return [
            self._edge.start(request, self._record, nth)
            for request in requests
            for nth in range(body.sequences)
        ]

    def _beginning(self, prompt_index: int) -> str:
        """What a choice's text begins with."""
        if not self._body.echo:
            return ""
        prompt: Prompt = self._body.prompts[prompt_index]
        if prompt.token_ids is None:
            return prompt.text
        return self._edge.tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)

    def _choice_json(self, index: int, sequence: Sequence, prompt_index: int) -> str:
        generation, body = sequence.generation, self._body
        beginning = self._beginning(prompt_index)
        tokens = [] if body.max_tokens == 0 else sequence.tokens
        text = beginning + "".join(token.shown for token in tokens)
        logprobs = "null"
        if body.logprobs is not None:
            prefill = self._prefill(generation) if body.echo else []
            told = _Told()
            kept = [each for token in tokens for each in told.next(token)]
            logprobs, _ = logprobs_json([*prefill, *kept], 0, best=body.logprobs)
        return choice_json(index, text, logprobs, finish_reason(generation) or "")

    def _chunks(self, choice: _Choice, piece: TextPiece) -> str:
        """The events of one delta; the first one also has what the text begins with."""
        body, generation, tokens = self._body, choice.generation, piece.tokens
        if body.max_tokens == 0:
            tokens = [_silent(tokens[-1])]
        if choice.beginning and body.logprobs is not None:
            choice.prefill = self._prefill(generation)
        events = []
        for place, token in enumerate(tokens, 1):
            ended = piece.finish_reason if place == len(tokens) else None
            text, choice.beginning = choice.beginning + token.shown, ""
            logprobs = "null"
            if body.logprobs is not None:
                told: list[GeneratedToken | PrefillToken] = list(choice.prefill)
                told += choice.told.next(token)
                choice.prefill = []
                logprobs, choice.offset = logprobs_json(told, choice.offset, best=body.logprobs)
            # Only the last event of a choice has its usage.
            usage = None if ended is None else self._usage([generation])
            part = choice_json(choice.index, text, logprobs, ended or "")
            events.append(self._head.chunk(part, usage))
        return "".join(events)

    def _prefill(self, generation: Generation) -> list[PrefillToken]:
        """The prompt's tokens, with texts that add up to it: a character is its last token's."""
        detokenizer = Detokenizer(self._edge.tokenizer)
        tokens = list(generation.prefill())
        for token in tokens:
            token.text = detokenizer.push(token.id)
        return tokens

    def _usage(self, generations: list[Generation]) -> str:
        """Each prompt counts once, however many sequences continue it."""
        prompts = generations[:: self._body.sequences]
        generated = sum(generation.generated_tokens for generation in generations)
        return usage_json(
            sum(generation.input_tokens for generation in prompts),
            0 if self._body.max_tokens == 0 else generated,
            sum(generation.cached_tokens for generation in prompts),
        )


def _silent(token: GeneratedToken) -> GeneratedToken:
    """With `max_tokens` 0 nothing but the prompt is said: what was generated for it is not."""
    return GeneratedToken(token.id, token.text, token.logprob, token.special, token.top, shown="")
