"""uvicorn's HTTP/1.1 protocol with what it lacks: deadlines, and limits for heads.

Slow, oversized and malformed requests are refused here, before any route. Rests on attributes and
callbacks of `HttpToolsProtocol` that are not its public interface: tests/api name them.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReceiveLimits:
    """What a request may take until it is whole."""

    header_timeout_s: float = 10.0  # from the connection, or the head's first byte, to its last
    body_timeout_s: float = 30.0  # from the end of the head to the end of the body
    head_bytes: int = 32 * 1024  # request line and headers
    headers: int = 128
    excess_bytes: int = 64 * 1024  # of a body, behind the answer; then the connection ends
    linger_s: float = 0.5  # for the client to read an answer that came before its body's end
    unread_timeout_s: float = 60.0  # without a byte of a waiting answer being read


class _Refused(Exception):
    """Raised inside the parser's callbacks."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection. `limits` belongs to the class: uvicorn makes the instances."""

    limits = ReceiveLimits()

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._deadline: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None  # `cycle` is the one parsed last
        self._deaf = False  # whatever still comes is not read
        self._in_head = True  # also between two messages
        self._head_begun = False
        self._head_bytes = 0  # of the head that is being read, as far as it came by itself
        self._fields_bytes = 0  # of the message's target, headers and trailers
        self._body_bytes = 0
        self._excess_bytes = 0  # of the body, since its request was answered
        self._message_ended = False
        self._unparsed_body = False
        self._unread: asyncio.TimerHandle | None = None  # while an answer waits to be read

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is due from now on, so that a silent connection ends as well."""
        super().connection_made(transport)
        self._expect(self.limits.header_timeout_s, self._late_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Also tells the request that runs while another one waits behind it."""
        self._expect_nothing()
        self._read_again()
        self._disconnect(self._running)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        """The client reads slower than it is answered. A stream has a shorter limit of its own."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """It has read most of it."""
        super().resume_writing()
        self._read_again()

    def _watch_reader(self) -> None:
        waiting = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < waiting:
                self._watch_reader()
            else:
                logger.info("a client did not read its answer and is cut off")
                self.transport.abort()

        self._unread = self.loop.call_later(self.limits.unread_timeout_s, look)

    def _read_again(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, in pieces that never let a head grow beyond its limit."""
        self._unset_keepalive_if_required()
        if self._deaf:
            return
        try:
            self._feed(memoryview(data))
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, _Refused):
                self._refuse(cause.status, str(cause))
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, "Invalid HTTP request received.")
        else:
            if self._in_head and self._deadline is None and not self._answering():
                self._expect(self.limits.header_timeout_s, self._late_head)

    def _feed(self, data: memoryview) -> None:
        while data and not self._deaf:
            if self._unparsed_body:
                self._take_body(data)
                return
            room = self.limits.head_bytes - self._head_bytes if self._in_head else len(data)
            piece, data = data[:room], data[room:]
            self._message_ended = False
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                # Not ours to speak: the request is answered as any other, and is the last one.
                self.cycle.keep_alive = False
                self._deaf = not self._unparsed_body
                data = memoryview(bytes(piece[upgrade.args[0] :]) + bytes(data))
                continue
            # Of a piece with an end and a beginning, the parser's callbacks count the beginning.
            self._head_bytes = 0 if self._message_ended else self._head_bytes + len(piece)
            if self._in_head and self._head_bytes >= self.limits.head_bytes:
                self._refuse(*_TOO_LARGE)

    def _take_body(self, data: memoryview) -> None:
        """The parser stops behind the head of an upgrade; Java's client sends a body with it."""
        self.on_body(bytes(data[: self._rest_of_body()]))
        if self._rest_of_body() == 0:
            self._unparsed_body = False
            self._deaf = True
            self._complete_message()

    # The parser's callbacks

    def on_message_begin(self) -> None:
        """A request line begins."""
        super().on_message_begin()
        self._head_begun = True
        self._fields_bytes = 0
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._count_field(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. Trailers come here too, after the request was handed on: they are dropped."""
        self._count_field(len(name) + len(value) + 4)
        if not self._in_head:
            return
        if len(self.headers) >= self.limits.headers:
            raise _Refused(*_TOO_MANY)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request goes to the application, unless another one of this connection is there."""
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise _Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here")
        self._in_head = self._head_begun = False
        self._head_bytes = 0
        self._expect_nothing()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body. Behind an early answer it is dropped, and soon no longer read."""
        self._body_bytes += len(body)
        if self._answered_early():
            self._excess_bytes += len(body)
            if self._excess_bytes > self.limits.excess_bytes:
                self._stop_reading()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is whole, or the parser leaves it to us."""
        if self.parser.should_upgrade() and self._rest_of_body() > 0:
            self._unparsed_body = True
        else:
            self._complete_message()

    def _complete_message(self) -> None:
        self._in_head = self._message_ended = True
        self._expect_nothing()
        super().on_message_complete()
        self.cycle.more_body = False  # uvicorn leaves it when the answer came first

    def on_response_complete(self) -> None:
        """After an answer before the body's end, a little more of the body is welcome."""
        if self._deaf and not self.pipeline:  # uvicorn would read on
            return
        super().on_response_complete()
        self._excess_bytes = 0
        if self._answered_early() and self._rest_of_body() > self.limits.excess_bytes:
            self._stop_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.transport = _AnswerTransport(self)
        old = cycle.scope["http_version"] == "1.0"
        super()._start_asgi_task(cycle, _ended_by_closing(cycle, app) if old else app)
        if cycle.more_body:
            self._expect(self.limits.body_timeout_s, self._late_body)

    def _count_field(self, count: int) -> None:
        self._fields_bytes += count
        if self._fields_bytes > self.limits.head_bytes:
            raise _Refused(*_TOO_LARGE)

    # Deadlines

    def _expect(self, timeout_s: float, late: Callable[[], None]) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(timeout_s, late)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late_head(self) -> None:
        if self._head_begun:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request's headers did not arrive in time")
        else:
            self.transport.close()

    def _late_body(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request's body did not arrive in time")

    # Endings

    def _answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _answered_early(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.response_complete and cycle.more_body

    def _rest_of_body(self) -> int:
        """Bytes that the request has declared and that have not come yet; 0 if it is chunked."""
        for name, value in self.headers:
            if name == b"content-length":
                return int(value) - self._body_bytes
        return 0

    def end_after_answer(self) -> None:
        """What uvicorn asks for when the answer is complete and the connection is not kept."""
        if self._answered_early():
            self._stop_reading()
        else:
            self.transport.close()

    def _stop_reading(self) -> None:
        """Read nothing more; closing at once would reset the connection under the answer."""
        self._deaf = True
        self._expect_nothing()
        self._unset_keepalive_if_required()
        self.flow.pause_reading()
        if not self.transport.is_closing():
            self.transport.write_eof()
            self.loop.call_later(self.limits.linger_s, self.transport.close)

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        """The end of a connection that cannot be read on, with an answer if one is due."""
        self._deaf = True
        self._expect_nothing()
        fields = {"status": int(status), "error": sentence}
        logger.info("request refused", extra={"fields": fields})
        running = self._running
        if running is not None and self._answering() and not running.more_body:
            # The running request is whole: what came behind it is refused by silence.
            running.keep_alive = False
            self.pipeline.clear()
            return
        begun = running is not None and self._answering() and running.response_started
        if not begun and not self._answered_early():
            self.transport.write(_plain_answer(status, sentence))
        self._disconnect(running)
        self.transport.close()

    @staticmethod
    def _disconnect(cycle: RequestResponseCycle | None) -> None:
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()


def _ended_by_closing(cycle: RequestResponseCycle, app: ASGIApp) -> Any:
    """For HTTP/1.0, which has no chunks: an answer without a length ends with its connection.

    RFC 9112, section 6.1. uvicorn would send chunks, or compare all parts with one length: here
    each part announces its own.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        has_length = False

        async def send_plain(message: Message) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                has_length = any(
                    name.lower() == b"content-length" for name, _ in message["headers"]
                )
                if not has_length:
                    cycle.chunked_encoding = False
            elif not has_length:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return answer


class _AnswerTransport(asyncio.Transport):
    """What uvicorn writes an answer to: the connection, but for the manner of its end."""

    def __init__(self, protocol: LimitedHttpProtocol) -> None:
        super().__init__()
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.WriteTransport."""
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        """See asyncio.BaseTransport."""
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        """See LimitedHttpProtocol.end_after_answer."""
        self._protocol.end_after_answer()


_TOO_LARGE = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "The request's line and headers are too large",
)
_TOO_MANY = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request has too many headers")


def _plain_answer(status: HTTPStatus, sentence: str) -> bytes:
    head = (
        f"HTTP/1.1 {int(status)} {status.phrase}\r\n"
        "content-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(sentence)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + sentence.encode()


def limited_protocol(limits: ReceiveLimits) -> type[LimitedHttpProtocol]:
    """The protocol with these limits, for uvicorn's `http` option."""
    return type("LimitedHttpProtocol", (LimitedHttpProtocol,), {"limits": limits})
