"""One HTTP request on its way through a replica to its server, and the answer on its way back."""

import asyncio
import json
import threading
from http import HTTPStatus
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# Of one connection, not of the message (RFC 9110, 7.6.1).
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
}  # fmt: skip
# Serve's proxy writes these itself; the request's id it also hands to the server.
_WRITTEN_BY_SERVE = {b"date", b"server", b"x-request-id"}
_UNAVAILABLE = {"error": "the replica's server does not answer", "error_type": "healthcheck"}
# A refusal is held back for so long: a replica that fails fast looks idle to Serve, and would draw
# the requests of everybody. Its end comes sooner, and then Serve asks the others.
_REFUSAL_S = 1.0
_LOOK_S = 0.02
# Every error, of an event or of a whole answer, begins with this key; in a text it is escaped.
_ERROR = b'"error"'
# The kind that all requests get when the engine ends, and otherwise hardly any.
_FAILED = b'"generation"'


class Upstream:
    """The server of a replica, as its requests see it."""

    def __init__(self, port: int, replica: str) -> None:
        """`port`: of the loopback. `replica`: its name, which answers carry."""
        self.replica = replica
        self.in_flight: set[Passage] = set()
        self.trouble = threading.Event()  # set with every error that comes from the server
        self.given_up = False  # set from outside: no request is handed to the server any more
        # How many connections there are, Serve decides. A read has no deadline: the server ends
        # what takes too long, and its streams have comments.
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            timeout=httpx.Timeout(None, connect=10.0),
            trust_env=False,
        )


class Passage(Response):
    """An answer whose bytes are handed on as they arrive.

    Serve cancels it when the client has gone; that closes the connection to the server, which then
    gives up the request.
    """

    def __init__(self, upstream: Upstream, request: Request) -> None:
        self._upstream = upstream
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises httpx.HTTPError when the server breaks off; Serve then breaks off as well."""
        if self._upstream.given_up:
            await self._refuse(send)
            return
        self._upstream.in_flight.add(self)
        try:
            await self._pass(send)
        finally:
            self._upstream.in_flight.discard(self)

    async def _pass(self, send: Send) -> None:
        try:
            answer = await self._upstream.client.send(self._outgoing(), stream=True)
        except httpx.TransportError:
            await self._refuse(send)
            return
        try:
            if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
                self._upstream.trouble.set()
                await self._hold_back()
            await send(self._start(answer.status_code, answer.headers.raw))
            async for piece in answer.aiter_raw():
                if _ERROR in piece:
                    self._upstream.trouble.set()
                    if _FAILED in piece:
                        await self._hold_back()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await answer.aclose()

    async def _hold_back(self) -> None:
        """Until the server is given up, if it is: who hears of it sooner comes back too soon."""
        for _ in range(round(_REFUSAL_S / _LOOK_S)):
            if self._upstream.given_up:
                return
            await asyncio.sleep(_LOOK_S)

    async def _refuse(self, send: Send) -> None:
        self._upstream.in_flight.discard(self)
        self._upstream.trouble.set()
        await asyncio.sleep(_REFUSAL_S)
        await send(self._start(503, [(b"content-type", b"application/json")]))
        body = json.dumps(_UNAVAILABLE).encode()
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _outgoing(self) -> httpx.Request:
        scope = self._request.scope
        path = scope.get("raw_path") or scope["path"].encode()
        path = path.removeprefix(scope.get("root_path", "").encode()) or b"/"
        query = scope["query_string"]
        target = path + (b"?" + query if query else b"")
        headers = [pair for pair in scope["headers"] if pair[0] not in _HOP_BY_HOP]
        names = {name for name, _ in scope["headers"]}
        has_body = bool(names & {b"content-length", b"transfer-encoding"})
        return httpx.Request(
            scope["method"],
            self._upstream.client.base_url.copy_with(raw_path=target),
            headers=headers,
            content=self._request.stream() if has_body else None,
            extensions={"timeout": self._upstream.client.timeout.as_dict()},
        )

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
        dropped = _HOP_BY_HOP | _WRITTEN_BY_SERVE
        kept = [(name.lower(), value) for name, value in headers if name.lower() not in dropped]
        kept.append((b"x-tiercel-replica", self._upstream.replica.encode()))
        return {"type": "http.response.start", "status": status, "headers": kept}
