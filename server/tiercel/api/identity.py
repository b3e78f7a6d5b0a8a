"""Who a request is to logs and traces: its `x-request-id`, taken or made, and the caller's trace.

Pure ASGI. The identity travels in `scope["state"]`; every answer names the request again.
"""

import re
import secrets
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Anything else is not repeated: it would end up in log lines and headers.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


@dataclass(frozen=True)
class Identity:
    """`trace_id` is the caller's, in hexadecimal; empty without a `traceparent` that is one."""

    request_id: str = ""
    trace_id: str = ""


NOBODY = Identity()


def identity_of(scope: Scope) -> Identity:
    """What the middleware noted; NOBODY where it did not run."""
    identity: Identity = scope.get("state", {}).get("identity", NOBODY)
    return identity


class Identified:
    """Notes the identity and adds `x-request-id` to the head of the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = _identity(scope)
        scope.setdefault("state", {})["identity"] = identity

        async def naming_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = identity.request_id
            await send(message)

        await self._app(scope, receive, naming_send)


def _identity(scope: Scope) -> Identity:
    request_id, trace_id = b"", ""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            request_id = value
        elif name == b"traceparent":
            found = _TRACEPARENT.fullmatch(value)
            if found is not None and found[1].strip(b"0") and found[2].strip(b"0"):
                trace_id = found[1].decode()
    return Identity(request_id.decode() or secrets.token_hex(8), trace_id)
