"""`/v1/chat/completions`: choices of text or of tool calls, in one answer or as events."""

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing
from functools import partial

from fastapi import FastAPI, Request, Response

from tiercel.api.answer import unless_gone
from tiercel.api.body import read_model
from tiercel.api.edge import Edge, outcome
from tiercel.api.generation import GeneratedToken
from tiercel.api.openai.chat_json import (
    call_choice,
    call_delta,
    logprobs_json,
    text_choice,
    text_delta,
)
from tiercel.api.openai.chat_schema import ERRORS, ChatResponse
from tiercel.api.openai.chat_start import ChatStart, chat_start
from tiercel.api.openai.choices import CallChoice, CallPiece, Choice, Piece, TextPiece
from tiercel.api.openai.document import Head, head_fields, usage_json
from tiercel.api.openai.errors import DONE, error_events, speak_openai
from tiercel.api.openai.parameters import check_choices
from tiercel.api.openai.schema import ChatRequest
from tiercel.api.openapi import events, takes
from tiercel.api.record import RequestRecord
from tiercel.api.several import several
from tiercel.api.stream import begun

ROUTE = "/v1/chat/completions"
_SERVED = ("", "tgi")  # names by which TGI's clients mean whatever is served
# Sent by the `stream()` helper of OpenAI's Python client, which adds up what is repeated and so
# would make "assistantassistant" of a role in two chunks. TGI's own client, on the other hand,
# takes no chunk without one.
_ADDS_UP = "x-stainless-helper-method"


class ChatRoutes:
    """Handlers over one edge."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def add_to(self, app: FastAPI) -> None:
        """Register the route."""
        app.add_api_route(
            ROUTE,
            self.chat,
            methods=["POST"],
            response_model=None,
            tags=["OpenAI"],
            summary="Answer a chat by text, JSON or tool calls; with `stream`, events",
            responses={200: {"model": ChatResponse, **events("The answer")}, **ERRORS},
            openapi_extra=takes(ChatRequest),
        )

    async def chat(self, request: Request) -> Response:
        """POST `/v1/chat/completions`; other routes may hand their requests on."""
        speak_openai(request.scope, ROUTE)
        self._edge.check_serving()
        body = await read_model(request, ChatRequest, self._edge.options.payload_limit)
        return await self.answer(request, body)

    async def answer(self, request: Request, body: ChatRequest) -> Response:
        """The answer to a body that has been read, here or by another route.

        Raises RequestError, to be written in OpenAI's shape also for that other route.
        """
        speak_openai(request.scope, ROUTE)
        record = self._edge.record(ROUTE, request.scope)
        work = _Work(self._edge, body, record, role_once=_ADDS_UP in request.headers)
        if body.stream:
            failed = partial(error_events, route=ROUTE)
            return await begun(
                request.receive, work.events(), failed, self._edge.options, work.compute_headers
            )
        content = await unless_gone(request.receive, work.answer())
        headers = {**work.compute_headers(), **record.headers()}
        return Response(content.encode(), media_type="application/json", headers=headers)


class _Work:
    """One request, answered in one piece or as events."""

    def __init__(
        self, edge: Edge, body: ChatRequest, record: RequestRecord, *, role_once: bool
    ) -> None:
        options = edge.options
        self._edge = edge
        self._body = body
        self._record = record
        self._start: ChatStart | None = None
        self._role_once = role_once
        self._introduced: set[int] = set()  # choices whose role has been sent
        self._best = body.top_logprobs or 0
        model = body.model or ""
        fields = head_fields("chatcmpl-", options.model_id if model in _SERVED else model, options)
        self._head = Head("chat.completion", "chat.completion.chunk", fields)

    def compute_headers(self) -> dict[str, str]:
        """The headers that do not wait for the end."""
        headers = {"x-compute-type": self._edge.options.compute_type}
        if self._start is not None:
            headers["x-compute-characters"] = str(self._start.prompt_characters)
        return headers

    async def answer(self) -> str:
        """All choices in one document. Raises RequestError; cancelling it aborts."""
        with outcome(self._record):
            with self._permits():
                choices = await self._begin()
                heard: list[list[Piece]] = [[] for _ in choices]
                async with aclosing(several(choices)) as pieces:
                    async for index, piece in pieces:
                        heard[index].append(piece)
            written = [
                self._choice(index, choice, heard[index]) for index, choice in enumerate(choices)
            ]
            return self._head.answer(written, _usage(choices))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """One event per token, then `[DONE]`. Raises RequestError. Closing it early aborts."""
        with outcome(self._record):
            with self._permits():
                choices = await self._begin()
                async with aclosing(several(choices)) as pieces:
                    async for index, piece in pieces:
                        yield self._chunks(index, piece).encode()
            tail = self._head.chunk("", _usage(choices)) if self._body.include_usage else ""
            yield (tail + DONE).encode()

    def _permits(self) -> AbstractContextManager[None]:
        """One per choice: of a call and the text in its place only one runs at a time."""
        check_choices(self._body, self._edge.options, sequences=self._body.choices)
        return self._edge.admission.permits(self._body.choices)

    async def _begin(self) -> list[Choice]:
        self._start = await chat_start(self._edge, self._body, self._record)
        return self._start.choices

    def _choice(self, index: int, choice: Choice, heard: list[Piece]) -> str:
        """One choice of the answer. Raises ToolError for a call that was cut off."""
        reason = heard[-1].finish_reason or ""
        if isinstance(choice, CallChoice) and isinstance(heard[-1], CallPiece):
            if not choice.reader.complete:
                raise choice.cut_off()
            arguments = "".join(piece.arguments for piece in heard if isinstance(piece, CallPiece))
            return call_choice(index, choice.id, choice.reader.name or "", arguments, reason)
        tokens = [
            token for piece in heard if isinstance(piece, TextPiece) for token in piece.tokens
        ]
        text = "".join(token.shown for token in tokens)
        return text_choice(index, text, reason, self._logprobs(tokens))

    def _chunks(self, index: int, piece: Piece) -> str:
        """The events of one piece; the finish reason is in the last one of a choice only."""
        if isinstance(piece, CallPiece):
            return self._chunk(call_delta(index, piece, role=self._role(index)))
        deltas = []
        for token in piece.tokens:
            reason = piece.finish_reason if token is piece.tokens[-1] else None
            logprobs = self._logprobs([token])
            deltas.append(text_delta(index, token.shown, reason, logprobs, role=self._role(index)))
        return "".join(map(self._chunk, deltas))

    def _chunk(self, choice: str) -> str:
        """Only the last event, which is without a choice, has the usage."""
        return self._head.chunk(choice, "null")

    def _role(self, index: int) -> bool:
        """Whether the next chunk of a choice says whose it is."""
        if not self._role_once:
            return True
        first = index not in self._introduced
        self._introduced.add(index)
        return first

    def _logprobs(self, tokens: list[GeneratedToken]) -> str:
        if not self._body.logprobs:
            return "null"
        return logprobs_json(tokens, self._edge.tokenizer, self._best)


def _usage(choices: list[Choice]) -> str:
    """The prompt counts once, however many choices answer it."""
    first = choices[0].generation
    return usage_json(
        first.input_tokens,
        sum(choice.generation.generated_tokens for choice in choices),
        first.cached_tokens,
    )
