"""The native routes that take a prompt: POST `/`, `/generate`, `/generate_stream`, `/tokenize`."""

from enum import Enum
from functools import partial

from fastapi import FastAPI, Request, Response

from tiercel.api.answer import native_answer, unless_gone
from tiercel.api.body import read_model
from tiercel.api.edge import Edge
from tiercel.api.openapi import ERRORS, events, takes
from tiercel.api.schema import (
    GenerateRequest,
    GenerateResponse,
    LegacyGenerateRequest,
    TokenizedBody,
)
from tiercel.api.stream import EventStream, native_events
from tiercel.api.tokenized import Tokenizing, tokenized_answer


class NativeRoutes:
    """Handlers over one edge."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def add_to(self, app: FastAPI) -> None:
        """Register the routes."""
        tags: list[str | Enum] = ["Text generation"]
        add = partial(app.add_api_route, methods=["POST"], response_model=None, tags=tags)
        add(
            "/",
            self.legacy,
            summary="Generate, in the shape of the old Inference API; with `stream`, events",
            responses={
                200: {**events("With `stream`, events"), "model": list[GenerateResponse]},
                **ERRORS,
            },
            openapi_extra=takes(LegacyGenerateRequest),
        )
        add(
            "/generate",
            self.generate,
            summary="Generate tokens",
            responses={200: {"model": GenerateResponse}, **ERRORS},
            openapi_extra=takes(GenerateRequest),
        )
        add(
            "/generate_stream",
            self.generate_stream,
            summary="Generate a stream of tokens as server-sent events",
            responses={200: events("One event per token"), **ERRORS},
            response_class=Response,
            openapi_extra=takes(GenerateRequest),
        )
        add(
            "/tokenize",
            self.tokenize,
            summary="The tokens of a text",
            responses={200: {"model": list[TokenizedBody]}, 503: ERRORS[503]},
            openapi_extra=takes(GenerateRequest),
        )

    async def legacy(self, request: Request) -> Response:
        """POST `/`: an array of one answer, with the prompt in front unless told otherwise."""
        self._edge.check_serving()
        body = await read_model(request, LegacyGenerateRequest, self._edge.options.payload_limit)
        if body.stream:
            return self._stream(request, body, full_text=True)
        return await self._answer(request, body, in_array=True)

    async def generate(self, request: Request) -> Response:
        """POST `/generate`: one answer."""
        self._edge.check_serving()
        body = await read_model(request, GenerateRequest, self._edge.options.payload_limit)
        return await self._answer(request, body, in_array=False)

    async def generate_stream(self, request: Request) -> Response:
        """POST `/generate_stream`: 200, then events; errors of values and limits are events too."""
        self._edge.check_serving()
        body = await read_model(request, GenerateRequest, self._edge.options.payload_limit)
        return self._stream(request, body, full_text=False)

    async def tokenize(self, request: Request) -> Response:
        """POST `/tokenize`: ids, texts and byte offsets. No limits and no metrics."""
        self._edge.check_serving()
        body = await read_model(request, GenerateRequest, self._edge.options.payload_limit)
        if not body.inputs:
            return Response(b"[]", media_type="application/json")
        return await tokenized_answer(self._edge, request.receive, Tokenizing(body.inputs))

    async def _answer(self, request: Request, body: GenerateRequest, *, in_array: bool) -> Response:
        record = self._edge.record("/" if in_array else "/generate", request.scope)
        work = native_answer(self._edge, body, record, full_text=in_array)
        answer, timing = await unless_gone(request.receive, work)
        headers = {**self._compute_headers(body), **timing}
        content = f"[{answer}]" if in_array else answer
        return Response(content.encode(), media_type="application/json", headers=headers)

    def _stream(self, request: Request, body: GenerateRequest, *, full_text: bool) -> Response:
        options = self._edge.options
        record = self._edge.record("/" if full_text else "/generate_stream", request.scope)
        return EventStream(
            native_events(self._edge, body, record, full_text=full_text),
            self._compute_headers(body),
            keep_alive_s=options.keep_alive_s,
            send_timeout_s=options.send_timeout_s,
        )

    def _compute_headers(self, body: GenerateRequest) -> dict[str, str]:
        return {
            "x-compute-type": self._edge.options.compute_type,
            "x-compute-characters": str(len(body.inputs)),
        }
