"""create_app: the routes, the answers to errors and the middleware, as one ASGI application.

Middleware is plain ASGI: it sees messages pass and never buffers a stream.
"""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import tiercel
from tiercel.api.body import BodyRefused
from tiercel.api.edge import Edge, ServerState
from tiercel.api.encoding import error_json
from tiercel.api.native import NativeRoutes
from tiercel.api.openapi import PATH, described
from tiercel.api.options import EdgeOptions
from tiercel.api.platform import PlatformRoutes
from tiercel.api.stream import let_streams_finish
from tiercel.engine.client import EngineClient
from tiercel.errors import RequestError
from tiercel.telemetry.metrics import Metrics
from tiercel.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
_EXPOSED = (
    "x-compute-type",
    "x-compute-time",
    "x-compute-characters",
    "x-total-time",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-prompt-tokens",
    "x-generated-tokens",
)


def create_app(
    engine: EngineClient,
    tokenizer: Tokenizer,
    options: EdgeOptions,
    metrics: Metrics,
    state: ServerState,
) -> FastAPI:
    """The HTTP edge over a ready engine. `state` may be changed while the app serves."""
    edge = Edge(engine, tokenizer, options, metrics, state)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        edge.close()

    app = FastAPI(
        title="Tiercel",
        version=tiercel.__version__,
        openapi_url=PATH,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.openapi = described(app)  # type: ignore[method-assign]
    PlatformRoutes(edge).add_to(app)
    NativeRoutes(edge).add_to(app)
    _add_error_answers(app, state)
    app.add_middleware(HeadAsGet)
    app.add_middleware(InFlight, state=state)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=options.cors_allow_origin or ("*",),
        allow_methods=("GET", "POST"),
        allow_headers=("authorization", "content-type", "traceparent"),
        expose_headers=_EXPOSED,
        max_age=600,
    )
    let_streams_finish()
    return app


class HeadAsGet:
    """HEAD is answered as GET is; the HTTP server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class InFlight:
    """Counts requests from their first byte to the last of their answer."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._state.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._state.in_flight -= 1


def _add_error_answers(app: FastAPI, state: ServerState) -> None:
    allowed = _methods_by_path(app)

    async def on_request_error(_: Request, error: Exception) -> Response:
        if not isinstance(error, RequestError):
            raise error
        headers = {}
        if error.status in (429, 503):
            headers["retry-after"] = str(RETRY_AFTER_S)
        if state.draining:
            headers["connection"] = "close"
        body = error_json(error).encode()
        return Response(body, error.status, headers, media_type="application/json")

    async def on_body_refused(request: Request, error: Exception) -> Response:
        if not isinstance(error, BodyRefused):
            raise error
        fields = {"route": request.url.path, "status": error.status, "error": str(error)}
        logger.info("request refused", extra={"fields": fields})
        return Response(str(error), error.status, media_type="text/plain")

    async def on_http_exception(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        headers = {}
        if error.status_code == 405:
            headers["allow"] = allowed.get(request.url.path, "GET,HEAD")
        return Response(status_code=error.status_code, headers=headers)

    async def on_client_gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; the status is nginx's

    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(BodyRefused, on_body_refused)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(ClientDisconnect, on_client_gone)


def _methods_by_path(app: FastAPI) -> Mapping[str, str]:
    """The value of `allow` for each path, GET first."""
    methods: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, Route):
            methods.setdefault(route.path, set()).update(route.methods or ())
    for names in methods.values():
        if "GET" in names:
            names.add("HEAD")
    return {path: ",".join(sorted(names)) for path, names in methods.items()}
