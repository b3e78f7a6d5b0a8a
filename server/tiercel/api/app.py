"""create_app: the routes, the answers to errors and the middleware, as one ASGI application.

Middleware is plain ASGI: it sees messages pass and never buffers a stream.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import tiercel
from tiercel.api.auth import Authentication, KeyRing, route_classes
from tiercel.api.body import BodyRefused
from tiercel.api.cors import CrossOrigin
from tiercel.api.docs import DocsRoute
from tiercel.api.edge import Edge, ServerState
from tiercel.api.encoding import error_json
from tiercel.api.identity import Identified
from tiercel.api.native import NativeRoutes
from tiercel.api.openai.chat import ChatRoutes
from tiercel.api.openai.chat_tokenize import ChatTokenizeRoute
from tiercel.api.openai.completions import CompletionRoutes
from tiercel.api.openai.errors import (
    error_document,
    refusal_document,
    speaks_openai,
    status_document,
)
from tiercel.api.openai.models import ModelRoutes
from tiercel.api.openapi import PATH, described
from tiercel.api.options import EdgeOptions
from tiercel.api.platforms.routes import add_platform_routes
from tiercel.api.playground.page import PlaygroundRoute
from tiercel.api.stream import let_streams_finish
from tiercel.api.summary import Summarized, summary_of
from tiercel.api.tracing import Traced, Traces
from tiercel.engine.client import EngineClient
from tiercel.errors import RequestError
from tiercel.sandbox.pool import SandboxPool
from tiercel.telemetry.loop_lag import watch_loop
from tiercel.telemetry.metrics import Metrics
from tiercel.text.chat import ChatTemplate
from tiercel.text.tokenizer import Tokenizer

RETRY_AFTER_S = 1
_ENDING = {413: {"connection": "close"}}  # the rest of the body is not waited for


def create_app(  # noqa: PLR0913 (what an app is made of, put together once)
    engine: EngineClient,
    tokenizer: Tokenizer,
    options: EdgeOptions,
    metrics: Metrics,
    state: ServerState,
    keys: KeyRing | None = None,
    traces: Traces | None = None,
    chat_template: ChatTemplate | None = None,
    sandbox: SandboxPool | None = None,
) -> FastAPI:
    """The HTTP edge over a ready engine. `state` and `keys` may be changed while the app serves.

    Without keys, or with an empty ring, everybody may call. The app closes the `sandbox`, in which
    the `chat_template` has its lane already.
    """
    edge = Edge(engine, tokenizer, options, metrics, state, chat_template, sandbox)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        edge.prewarm()
        metrics.render()  # the first time takes many times longer
        lag = asyncio.ensure_future(watch_loop(metrics.server.loop_lag.observe))
        yield
        lag.cancel()
        await edge.close()

    app = FastAPI(
        title="Tiercel",
        version=tiercel.__version__,
        openapi_url=PATH if options.docs else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.openapi = described(app)  # type: ignore[method-assign]
    app.state.metrics = metrics
    _add_routes(app, edge)
    _add_error_answers(app, state)
    if traces is not None:
        app.add_middleware(Traced, traces=traces, predict_route=options.predict_route)
    _add_middleware(app, edge, KeyRing() if keys is None else keys)
    let_streams_finish()
    return app


def _add_middleware(app: FastAPI, edge: Edge, keys: KeyRing) -> None:
    """From the innermost to the outermost."""
    options, rejected = edge.options, edge.metrics.requests.rejected
    app.add_middleware(HeadAsGet)
    app.add_middleware(InFlight, state=edge.state)
    probes = (options.health_route,) if options.health_route else ()
    app.add_middleware(
        Authentication,
        keys=keys,
        classes=route_classes(protect_metrics=options.protect_metrics, public=probes),
        on_refused=lambda reason: rejected.labels(reason).inc(),
    )
    app.add_middleware(Summarized)
    app.add_middleware(Identified)
    app.add_middleware(CrossOrigin, origins=options.cors_allow_origin)


def _add_routes(app: FastAPI, edge: Edge) -> None:
    options = edge.options
    if options.docs:
        DocsRoute(app.openapi).add_to(app)
    NativeRoutes(edge).add_to(app)
    ChatRoutes(edge).add_to(app)
    ChatTokenizeRoute(edge).add_to(app)
    CompletionRoutes(edge).add_to(app)
    ModelRoutes(edge).add_to(app)
    if options.playground:
        PlaygroundRoute(options.max_top_n_tokens).add_to(app)
    add_platform_routes(app, edge)


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
        owed = scope["method"] not in ("GET", "HEAD")
        self._state.in_flight += 1
        self._state.owed += owed
        try:
            await self._app(scope, receive, send)
        finally:
            self._state.in_flight -= 1
            self._state.owed -= owed


def _add_error_answers(app: FastAPI, state: ServerState) -> None:
    allowed = _methods_by_path(app)

    async def on_request_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestError):
            raise error
        summary_of(request.scope).refused(error.error_type, "" if error.quotes else str(error))
        headers = {}
        if error.status in (429, 503):
            headers["retry-after"] = str(RETRY_AFTER_S)
        if state.draining:
            headers["connection"] = "close"
        route = speaks_openai(request)
        body = error_json(error) if route is None else error_document(error, route)
        return Response(body.encode(), error.status, headers, media_type="application/json")

    async def on_http_exception(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        headers = {}
        if error.status_code == 405:
            headers["allow"] = allowed.get(request.scope["path"], "GET,HEAD")
        if speaks_openai(request) is None:
            return Response(status_code=error.status_code, headers=headers)
        body = status_document(error.status_code).encode()
        return Response(body, error.status_code, headers, media_type="application/json")

    async def on_client_gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; the status is nginx's

    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(BodyRefused, _on_body_refused)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(ClientDisconnect, on_client_gone)


async def _on_body_refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, BodyRefused):
        raise error
    summary_of(request.scope).refused("body", str(error))
    request.app.state.metrics.requests.rejected.labels("body").inc()
    headers = _ENDING.get(error.status)
    if speaks_openai(request) is not None:
        body = refusal_document(error).encode()
        return Response(body, error.status, headers, media_type="application/json")
    return Response(str(error), error.status, headers, media_type="text/plain")


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
