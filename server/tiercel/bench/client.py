"""A raw HTTP/1.1 client for the native routes, made to be cheap: on a small machine it shares the
cores with the server it measures. While bytes arrive it only stamps and keeps them; events are
parsed afterwards. One connection per request.
"""

import asyncio
import json
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

# Quotes inside JSON strings are escaped, so generated text can never look like this.
_TOKEN_MARK = b'"token":{'
_LAST_CHUNK = b"0\r\n\r\n"
RUNNING = "tgi_batch_current_size"
POLL_S = 0.02


@dataclass(frozen=True)
class Event:
    """One server-sent event and when its last byte arrived."""

    arrival_s: float  # time.perf_counter()
    data: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An ended exchange. `complete` is false when the server broke off or the client left."""

    status: int
    headers: dict[str, str]
    body: bytes  # without transfer encoding
    sent_s: float
    ended_s: float
    complete: bool
    arrivals: list[tuple[int, float]]  # (bytes of the body so far, when they were there), ascending

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Event]:
        """All complete events, keep-alive comments left out."""
        ends = [end for end, _ in self.arrivals]
        found: list[Event] = []
        start = 0
        while (stop := self.body.find(b"\n\n", start)) >= 0:
            block = self.body[start:stop]
            start = stop + 2
            if block.startswith(b"data: "):
                arrival_s = self.arrivals[bisect_left(ends, start)][1]
                found.append(Event(arrival_s, json.loads(block[6:])))
        return found

    def token_times(self) -> list[float]:
        """When each token's event arrived, without parsing any of them."""
        ends = [end for end, _ in self.arrivals]
        times: list[float] = []
        place = self.body.find(_TOKEN_MARK)
        while place >= 0:
            times.append(self.arrivals[bisect_left(ends, place + len(_TOKEN_MARK))][1])
            place = self.body.find(_TOKEN_MARK, place + 1)
        return times


class Exchange(asyncio.Protocol):
    """One request on its own connection. `tokens_seen` is live; the rest is read from `reply()`."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._pieces: list[tuple[bytes, float]] = []
        self._sent_s = 0.0
        self._ended_s = 0.0
        self._wanted = 0
        self._reached: asyncio.Future[None] | None = None
        self.ended = asyncio.Event()
        self.tokens_seen = 0  # a mark split over two reads is missed here, never in the reply
        self.dropped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._pieces.append((data, time.perf_counter()))
        self.tokens_seen += data.count(_TOKEN_MARK)
        if self.tokens_seen >= self._wanted:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended_s = time.perf_counter()
        self.ended.set()
        self._wake()

    async def tokens(self, count: int) -> int:
        """Wait for `count` token events or the end of the exchange; how many there are."""
        if self.tokens_seen < count and not self.ended.is_set():
            self._wanted = count
            self._reached = asyncio.get_running_loop().create_future()
            await self._reached
        return self.tokens_seen

    def drop(self) -> None:
        """Close the socket now, without a word."""
        if self._transport is not None:
            self.dropped = True
            self._transport.abort()

    def _wake(self) -> None:
        if self._reached is not None and not self._reached.done():
            self._reached.set_result(None)

    async def reply(self) -> Reply:
        """Wait for the end and take the answer apart."""
        await self.ended.wait()
        return _parse(self._pieces, self._sent_s, self._ended_s)


@dataclass(frozen=True)
class Client:
    """Where requests go."""

    host: str
    port: int

    async def open(self, path: str, payload: Mapping[str, Any]) -> Exchange:
        """Send a POST. Raises OSError when the server does not accept."""
        request = build_post(self.host, self.port, path, payload)
        return await self.exchange(request)

    async def exchange(self, request: bytes) -> Exchange:
        """Send these bytes as they are. Raises OSError when the server does not accept."""
        loop = asyncio.get_running_loop()
        _, exchange = await loop.create_connection(lambda: Exchange(request), self.host, self.port)
        return exchange

    async def post(self, path: str, payload: Mapping[str, Any]) -> Reply:
        return await (await self.open(path, payload)).reply()

    async def get(self, path: str) -> Reply:
        head = f"GET {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n\r\n"
        return await (await self.exchange(head.encode())).reply()

    async def metrics(self) -> dict[str, float]:
        """All samples of `/metrics`; keys as in the exposition, labels included."""
        return parse_metrics((await self.get("/metrics")).body.decode())

    async def wait_for_metric(
        self, name: str, accept: Callable[[float], bool], timeout_s: float = 60.0
    ) -> None:
        """Poll until the sample `name` (0 while it is missing) is accepted. Raises TimeoutError."""
        deadline = time.perf_counter() + timeout_s
        while not accept(value := (await self.metrics()).get(name, 0.0)):
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{name} is still {value:g} after {timeout_s:g} s")
            await asyncio.sleep(POLL_S)

    async def wait_until_idle(self) -> None:
        """Return once no request runs. Raises TimeoutError."""
        await self.wait_for_metric(RUNNING, lambda running: running == 0)


def build_post(host: str, port: int, path: str, payload: Mapping[str, Any]) -> bytes:
    """One whole request that asks the server to close the connection after its answer."""
    body = json.dumps(payload).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def parse_metrics(text: str) -> dict[str, float]:
    """Samples of a Prometheus text exposition without timestamps."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    return {name: float(value) for name, value in lines}


def _parse(pieces: list[tuple[bytes, float]], sent_s: float, ended_s: float) -> Reply:
    raw = b"".join(data for data, _ in pieces)
    head_end = raw.find(b"\r\n\r\n")
    if head_end < 0:
        return Reply(0, {}, b"", sent_s, ended_s, complete=False, arrivals=[])
    status_line, *lines = raw[:head_end].decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    spans = _arrived(pieces)
    start = head_end + 4
    if headers.get("transfer-encoding") == "chunked":
        body, arrivals, complete = _dechunk(raw, start, spans)
    else:
        body = raw[start:]
        arrivals = [(end - start, at) for end, at in spans if end > start]
        complete = len(body) == int(headers.get("content-length", len(body)))
    status = int(status_line.split(" ", 2)[1])
    return Reply(status, headers, body, sent_s, ended_s, complete, arrivals)


def _arrived(pieces: list[tuple[bytes, float]]) -> list[tuple[int, float]]:
    """(bytes received so far, when), one entry per read."""
    spans: list[tuple[int, float]] = []
    total = 0
    for data, at in pieces:
        total += len(data)
        spans.append((total, at))
    return spans


def _dechunk(
    raw: bytes, place: int, spans: list[tuple[int, float]]
) -> tuple[bytes, list[tuple[int, float]], bool]:
    """Body, when its chunks arrived, and whether the last chunk was there."""
    ends = [end for end, _ in spans]
    parts: list[bytes] = []
    arrivals: list[tuple[int, float]] = []
    length = 0
    while (line_end := raw.find(b"\r\n", place)) >= 0:
        size = int(raw[place:line_end], 16)
        start, stop = line_end + 2, line_end + 2 + size
        if size == 0:
            return b"".join(parts), arrivals, raw[place:].startswith(_LAST_CHUNK)
        if stop > len(raw):
            break
        parts.append(raw[start:stop])
        length += size
        arrivals.append((length, spans[bisect_left(ends, stop)][1]))
        place = stop + 2
    return b"".join(parts), arrivals, False
