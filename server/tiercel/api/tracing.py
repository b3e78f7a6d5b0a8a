"""Which requests have a span, and the middleware that starts and ends it.

The span travels in `scope["state"]`; whoever knows more about the request adds attributes.
"""

from collections.abc import Mapping
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiercel.telemetry.traces import NO_SPAN, Span

# TGI's names of its handlers.
SPAN_NAMES: Mapping[str, str] = {
    "/": "compat_generate",
    "/generate": "generate",
    "/generate_stream": "generate_stream",
    "/v1/chat/completions": "chat_completions",
    "/v1/completions": "completions",
    "/tokenize": "tokenize",
    "/chat_tokenize": "chat_tokenize",
    "/invocations": "sagemaker_compatibility",
    "/vertex": "vertex_compatibility",
}
# Triton's and KServe's routes have the model's name in the middle.
_MODEL_ROUTES = "/v2/models/"
_MODEL_VERBS = ("infer", "generate", "generate_stream")
_CONTEXT_HEADERS = (b"traceparent", b"tracestate")


class Traces(Protocol):
    """Where spans come from: telemetry's OtlpTraces."""

    def start(self, name: str, headers: Mapping[str, str]) -> Span:
        """A span below the caller's, which `traceparent` and `tracestate` name."""


def span_of(scope: Scope) -> Span:
    """The span of the request; NO_SPAN where it has none."""
    span: Span = scope.get("state", {}).get("span", NO_SPAN)
    return span


class Traced:
    """Pure ASGI. One span per POST on a known route, from its head to the end of its answer."""

    def __init__(self, app: ASGIApp, traces: Traces, predict_route: str | None = None) -> None:
        self._app = app
        self._traces = traces
        self._names = dict(SPAN_NAMES)
        if predict_route is not None:
            self._names[predict_route] = "vertex_compatibility"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        name = self._name(scope)
        if name is None:
            await self._app(scope, receive, send)
            return
        headers = {
            key.decode(): value.decode("latin-1")
            for key, value in scope["headers"]
            if key in _CONTEXT_HEADERS
        }
        span = self._traces.start(name, headers)
        span.set({"http.request.method": "POST", "url.path": scope["path"]})
        scope.setdefault("state", {})["span"] = span

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set({"http.response.status_code": message["status"]})
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        finally:
            span.end()

    def _name(self, scope: Scope) -> str | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        path: str = scope["path"]
        if path.startswith(_MODEL_ROUTES):
            verb = path.rpartition("/")[2]
            return f"kserve_{verb}" if verb in _MODEL_VERBS else None
        return self._names.get(path)
