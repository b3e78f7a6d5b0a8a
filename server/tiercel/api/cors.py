"""Cross-origin calls: what browsers on other sites may send and read. Pure ASGI.

Any OPTIONS request is answered here with 200, as TGI does; credentials are never allowed.
"""

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALLOWED_METHODS = ("GET", "POST")
ALLOWED_HEADERS = (
    "authorization",
    "content-type",
    "traceparent",
    "tracestate",
    "x-request-id",
    # OpenAI's JavaScript client sends these from browsers, too.
    "openai-organization",
    "openai-project",
    "x-stainless-arch",
    "x-stainless-helper-method",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-poll-helper",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
)
EXPOSED_HEADERS = (
    "retry-after",
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
    "x-request-id",
)
_VARY = (b"vary", b"origin, access-control-request-method, access-control-request-headers")
_MAX_AGE_S = 600


class CrossOrigin:
    """`origins` are compared exactly; none means that any origin may call."""

    def __init__(self, app: ASGIApp, origins: Sequence[str] = ()) -> None:
        self._app = app
        self._any = not origins or "*" in origins
        self._origins = {origin.encode("latin-1", "replace") for origin in origins}
        self._preflight = [
            (b"access-control-allow-methods", ",".join(ALLOWED_METHODS).encode()),
            (b"access-control-allow-headers", ",".join(ALLOWED_HEADERS).encode()),
            (b"access-control-max-age", str(_MAX_AGE_S).encode()),
            (b"content-length", b"0"),
        ]
        self._exposed = (b"access-control-expose-headers", ",".join(EXPOSED_HEADERS).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [_VARY, *self._allowed_origin(scope)]
        if scope["method"] == "OPTIONS":
            headers += self._preflight
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body"})
            return
        if len(headers) > 1:
            headers.append(self._exposed)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _allowed_origin(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        if self._any:
            return [(b"access-control-allow-origin", b"*")]
        origin = next((value for name, value in scope["headers"] if name == b"origin"), b"")
        return [(b"access-control-allow-origin", origin)] if origin in self._origins else []
