"""Bytes to a server and bytes back, for requests that no client library would send."""

import contextlib
import socket
import time
from dataclasses import dataclass

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class RawAnswer:
    """The first answer on a connection; `status` 0 when there was none."""

    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes  # whatever came behind the first answer
    elapsed_s: float


def connect(port: int, timeout_s: float = TIMEOUT_S) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout_s)


def ask(port: int, request: bytes, timeout_s: float = TIMEOUT_S) -> RawAnswer:
    """Send all, read until the server closes or the answer is whole. Resets are no errors."""
    start_s = time.perf_counter()
    with connect(port, timeout_s) as connection:
        with contextlib.suppress(OSError):  # the server may answer before it has everything
            connection.sendall(request)
        received = read_answer(connection)
    return parse(received, time.perf_counter() - start_s)


def read_answer(connection: socket.socket) -> bytes:
    """Until the end, or until an answer with a content length is whole."""
    received = b""
    while not _whole(received):
        try:
            more = connection.recv(65536)
        except ConnectionResetError:
            break
        if not more:
            break
        received += more
    return received


def parse(received: bytes, elapsed_s: float = 0.0) -> RawAnswer:
    head, _, body = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100 "):
        head, _, body = body.partition(b"\r\n\r\n")
    if not head:
        return RawAnswer(0, {}, b"", b"", elapsed_s)
    line, *fields = head.decode("latin-1").split("\r\n")
    pairs = (field.partition(":") for field in fields)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    length = int(headers.get("content-length", len(body)))
    return RawAnswer(int(line.split(" ")[1]), headers, body[:length], body[length:], elapsed_s)


def _whole(received: bytes) -> bool:
    if b"\r\n\r\n" not in received:
        return False
    answer = parse(received)
    length = answer.headers.get("content-length")
    if length is not None:
        return len(answer.body) == int(length)
    return answer.headers.get("transfer-encoding") == "chunked" and received.endswith(b"0\r\n\r\n")


def post(path: str, body: bytes, *headers: str, content_type: str = "application/json") -> bytes:
    """One POST with a content length, as bytes."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def get(path: str, *headers: str) -> bytes:
    """One GET, as bytes."""
    return "\r\n".join([f"GET {path} HTTP/1.1", *headers]).encode("latin-1") + b"\r\n\r\n"
