"""SageMaker: POST `/invocations`, one address for the shapes of three routes.

`/ping` is in `api/platform.py`; SageMaker's variables are in `platform_variables.py`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.types import Message, Receive

from tiercel.api.body import BodyRefused, is_json, read_bytes
from tiercel.api.edge import Edge
from tiercel.api.openai.chat_schema import ERRORS as OPENAI_ERRORS
from tiercel.api.openai.chat_schema import OpenAIErrorAnswer
from tiercel.api.openai.errors import speak_openai
from tiercel.api.openapi import ERRORS, events, takes
from tiercel.api.schema import ErrorBody

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Shape:
    """One kind of body, and the route that answers it."""

    model: type[BaseModel]
    handler: Handler
    openai: str | None = None  # the route as which errors are written in OpenAI's shape


class SageMakerRoutes:
    """`shapes` by the field that tells them apart, in the order in which it is looked for."""

    def __init__(self, edge: Edge, shapes: Mapping[str, Shape]) -> None:
        self._edge = edge
        self._shapes = shapes

    def add_to(self, app: FastAPI) -> None:
        """Register the route."""
        models = [shape.model for shape in self._shapes.values()]
        content: dict[str, Any] = {"application/json": {"schema": {}}, "text/event-stream": {}}
        answer = {**events("As the route of that shape answers"), "content": content}
        errors = {
            status: {**response, "model": ErrorBody | OpenAIErrorAnswer}
            for status, response in {**OPENAI_ERRORS, **ERRORS}.items()
            if status != 401  # without a shape there is TGI's empty body
        }
        app.add_api_route(
            "/invocations",
            self.invocations,
            methods=["POST"],
            response_model=None,
            tags=["SageMaker"],
            summary="Generate: a body of POST /, of chat completions or of completions",
            responses={200: answer, **errors},
            openapi_extra=takes(*models),
        )

    async def invocations(self, request: Request) -> Response:
        """SageMaker's one address: `inputs` is answered as POST `/` does, `messages` as chat, \
`prompt` as completions."""
        self._edge.check_serving()
        if not is_json(request.headers.get("content-type", "")):
            raise BodyRefused(415, "Expected request with `Content-Type: application/json`")
        body = await read_bytes(request, self._edge.options.payload_limit)
        shape = self._shape(body)
        if shape.openai is not None:
            speak_openai(request.scope, shape.openai)
        return await shape.handler(Request(request.scope, _Replayed(body, request.receive)))

    def _shape(self, body: bytes) -> Shape:
        """The first shape whose field is there. The first one of all refuses what is no object."""
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            fields = {next(iter(self._shapes)): msgspec.Raw()}
        for field, shape in self._shapes.items():
            if field in fields:
                return shape
        raise BodyRefused(
            422,
            "Failed to deserialize the JSON body into the target type: one of the fields "
            f"{', '.join(f'`{field}`' for field in self._shapes)} is needed",
        )


class _Replayed:
    """A body that has been read, and then what the client does next."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
