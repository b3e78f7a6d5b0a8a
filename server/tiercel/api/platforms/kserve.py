"""KServe's v2 protocol (Open Inference Protocol) and Triton's generate extension.

There is one model, so the names in a path are not compared with anything: they are what the
deployment calls it, and come back in the answers.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from enum import Enum
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response

import tiercel
from tiercel.api.answer import unless_gone
from tiercel.api.body import read_model
from tiercel.api.edge import Edge, outcome
from tiercel.api.encoding import document_json, error_event, json_string
from tiercel.api.openapi import ERRORS, events, takes
from tiercel.api.platforms.kserve_schema import (
    InferInput,
    InferRequest,
    InferResponse,
    LiveBody,
    ModelBody,
    ReadyBody,
    ServerBody,
    TritonRequest,
    TritonResponse,
)
from tiercel.api.platforms.prompts import Asked, texts
from tiercel.api.record import RequestRecord
from tiercel.api.schema import ErrorBody
from tiercel.api.stream import begun
from tiercel.api.validation import Prompt, check_shape
from tiercel.errors import LengthMismatch, NotUtf8, RequestError, Unhealthy

MODEL = "/v2/models/{name:path}"
VERSION = MODEL + "/versions/{version}"
ONLY_VERSION = "1"  # when the path names none
_VERBS = ("infer", "generate", "generate_stream")
_TAGS: list[str | Enum] = ["KServe v2"]
Responses = dict[int | str, dict[str, Any]]


class KServeRoutes:
    """Handlers over one edge."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def add_to(self, app: FastAPI) -> None:
        """Register the routes; the longer paths first, because a model's name may have slashes."""
        get = partial(app.add_api_route, methods=["GET"], response_model=None, tags=_TAGS)
        sick: Responses = {503: {"model": ErrorBody, "description": "Not ready"}}
        ready: Responses = {200: {"model": ReadyBody}, **sick}
        model: Responses = {200: {"model": ModelBody}}
        get("/v2", self.server, summary="The server", responses={200: {"model": ServerBody}})
        get("/v2/health/live", self.live, summary="Alive", responses={200: {"model": LiveBody}})
        get("/v2/health/ready", self.ready, summary="Ready for requests", responses=ready)
        get(VERSION + "/ready", self.ready, summary="A version is ready", responses=ready)
        get(MODEL + "/ready", self.ready, summary="The model is ready", responses=ready)
        get(VERSION, self.model, summary="A version of the model", responses=model)
        get(MODEL, self.model, summary="The model", responses=model)
        for path in (VERSION, MODEL):
            self._add_verbs(app, path)

    def _add_verbs(self, app: FastAPI, path: str) -> None:
        post = partial(app.add_api_route, methods=["POST"], response_model=None, tags=_TAGS)
        post(
            path + "/infer",
            self.infer,
            summary="Generate for each input",
            responses={200: {"model": InferResponse}, **ERRORS},
            openapi_extra=takes(InferRequest),
        )
        post(
            path + "/generate",
            self.generate,
            summary="Generate for one text",
            responses={200: {"model": TritonResponse}, **ERRORS},
            openapi_extra=takes(TritonRequest),
        )
        post(
            path + "/generate_stream",
            self.generate_stream,
            summary="Generate for one text, as server-sent events",
            responses={200: events("Answers of `generate`, piece by piece"), **ERRORS},
            response_class=Response,
            openapi_extra=takes(TritonRequest),
        )

    async def server(self) -> Response:
        """Name, version and what the server can do."""
        return _json(
            {
                "name": "text-generation-inference",
                "version": tiercel.__version__,
                "extensions": ["health", "models", "metrics", "generate"],
            }
        )

    async def live(self) -> Response:
        """True while the process answers at all."""
        return _json({"live": True})

    async def ready(self) -> Response:
        """Whether requests can be served."""
        if not self._edge.healthy():
            raise Unhealthy
        return _json({"live": True, "ready": True})

    async def model(self, request: Request) -> Response:
        """The tensors that `infer` takes and gives. Any name is the model's."""
        name, version = _named(request)
        if name.rpartition("/")[2] in _VERBS:
            return Response(status_code=405, headers={"allow": "POST"})
        return _json(
            {
                "name": name,
                "version": version,
                "extensions": ["infer", "ready", "generate"],
                "versions": [version],
                "platform": "tiercel",
                "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}],
                "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [-1]}],
            }
        )

    async def infer(self, request: Request) -> Response:
        """One text for each prompt. Parameters are those of `/generate` and hold for all."""
        edge = self._edge
        edge.check_serving()
        body = await read_model(request, InferRequest, edge.options.payload_limit)
        if body.outputs is not None and len(body.outputs) != len(body.inputs):
            raise LengthMismatch(len(body.inputs), len(body.outputs))
        prompts = [_prompts(each) for each in body.inputs]
        asked = [Asked(Prompt(text), body.parameters) for each in prompts for text in each]
        record = edge.record("/v2/models/infer", request.scope)
        answers = iter(await unless_gone(request.receive, texts(edge, record, asked)))
        names = [each.name for each in body.outputs or ()] or ["text_output"] * len(body.inputs)
        outputs = ",".join(
            _tensor(name, given, [next(answers) for _ in texts_])
            for name, given, texts_ in zip(names, body.inputs, prompts, strict=True)
        )
        content = f'{{{_head(request, body.id)},"outputs":[{outputs}]}}'
        return Response(content.encode(), media_type="application/json")

    async def generate(self, request: Request) -> Response:
        """Parameters are those of `/generate`; `max_tokens` is another name of one."""
        edge = self._edge
        edge.check_serving()
        body = await read_model(request, TritonRequest, edge.options.payload_limit)
        record = edge.record("/v2/models/generate", request.scope)
        (text,) = await unless_gone(request.receive, texts(edge, record, [_asked(body)]))
        content = f'{{{_head(request, body.id)},"text_output":{json_string(text)}}}'
        return Response(content.encode(), media_type="application/json")

    async def generate_stream(self, request: Request) -> Response:
        """As `generate`. An error before the first event has its own status, later it is an \
event."""
        edge = self._edge
        options = edge.options
        edge.check_serving()
        body = await read_model(request, TritonRequest, options.payload_limit)
        record = edge.record("/v2/models/generate_stream", request.scope)
        chunks = self._pieces(_asked(body), record, _head(request, body.id))
        return await begun(request.receive, chunks, _failed, options, dict)

    async def _pieces(
        self, asked: Asked, record: RequestRecord, head: str
    ) -> AsyncGenerator[bytes, None]:
        """An event per step. Raises RequestError. Closing it early aborts."""
        edge = self._edge
        with outcome(record):
            check_shape(asked.parameters, edge.options, stream=True)
            with edge.admission.permits(1):
                request = await edge.validated(asked.prompt, asked.parameters, record)
                generation = edge.start(request, record)
                async with aclosing(generation.deltas()) as deltas:
                    async for tokens in deltas:
                        piece = "".join(token.shown for token in tokens)
                        yield f'data: {{{head},"text_output":{json_string(piece)}}}\n\n'.encode()


def _failed(error: RequestError) -> bytes:
    return error_event(error).encode()


def _json(document: dict[str, Any]) -> Response:
    return Response(document_json(document), media_type="application/json")


def _named(request: Request) -> tuple[str, str]:
    """Name and version of the path; both are only repeated."""
    return request.path_params["name"], request.path_params.get("version", ONLY_VERSION)


def _head(request: Request, request_id: str | None) -> str:
    """How every answer begins, without its brace."""
    name, version = _named(request)
    id_ = "" if request_id is None else f'"id":{json_string(request_id)},'
    return f'{id_}"model_name":{json_string(name)},"model_version":{json_string(version)}'


def _asked(body: TritonRequest) -> Asked:
    parameters = body.parameters
    if parameters.max_new_tokens is None and parameters.max_tokens is not None:
        parameters = parameters.model_copy(update={"max_new_tokens": parameters.max_tokens})
    return Asked(Prompt(body.text_input), parameters)


def _prompts(given: InferInput) -> list[str]:
    """The prompts of a tensor: one of bytes, or one per string. Raises NotUtf8."""
    prompts: list[str] = []
    numbers: list[int] = []
    for item in given.data:
        if isinstance(item, int):
            numbers.append(item)
        else:
            prompts += [item] if isinstance(item, str) else item
    if prompts:
        return prompts
    try:
        return [bytes(numbers).decode()]
    except UnicodeDecodeError:
        raise NotUtf8 from None


def _tensor(name: str, given: InferInput, answers: Sequence[str]) -> str:
    """The output as JSON, in the form of its input."""
    if given.data and isinstance(given.data[0], int):
        data = answers[0].encode()
        shape, values = f"[1,{len(data)}]", ",".join(map(str, data))
    else:
        nested = bool(given.data) and isinstance(given.data[0], list)
        shape = f"[{len(answers)},1]" if nested else f"[{len(answers)}]"
        values = ",".join(map(json_string, answers))
    return f'{{"name":{json_string(name)},"shape":{shape},"datatype":"BYTES","data":[{values}]}}'
