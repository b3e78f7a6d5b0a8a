"""R-24: big, deep and compressed bodies. Refused at once, and read no further than they must be."""

import gzip
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pytest

from support.process_memory import forget_peak, peak_bytes, read_bytes, resident_bytes
from support.raw_http import connect, parse, post, read_answer
from tiercel.bench.server import ServerProcess

LIMIT = 2_000_000
ANSWER_S = 0.2  # after the limit is reached
MORE_READ = 64 * 1024
ONE_READ = 256_000  # uvloop's buffer: as much may come in with the byte that is too much
MORE_RSS = 16 * 1024 * 1024
ROUNDS = 3  # the fastest counts: the machine is shared
CHUNKED = (
    b"POST /generate HTTP/1.1\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def declared(body: bytes, length: int | None = None, *headers: str) -> Iterator[bytes]:
    """A body with its length, or with the length it claims to have."""
    request = post("/generate", body, *headers)
    claimed = f"Content-Length: {len(body) if length is None else length}\r\n"
    yield request.replace(f"Content-Length: {len(body)}\r\n".encode(), claimed.encode(), 1)


def endless(size: int, piece: bytes = b" " * 8_000) -> Iterator[bytes]:
    """A chunked body: as much as the limit in one piece, then small pieces."""
    yield CHUNKED + b"%x\r\n%s\r\n" % (LIMIT, piece[:1] * LIMIT)
    for _ in range((size - LIMIT) // len(piece)):
        yield b"%x\r\n%s\r\n" % (len(piece), piece)


def bomb() -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        for _ in range(100):
            file.write(b" " * 1_000_000)
    return packed.getvalue()


def with_keys(count: int) -> bytes:
    return (
        b'{"inputs": "x", "parameters": {"max_new_tokens": 1}, '
        + b",".join(b'"k%d":0' % n for n in range(count))
        + b"}"
    )


def parameter(text: bytes) -> bytes:
    return b'{"inputs": "x", "parameters": {"temperature": ' + text + b"}}"


CASES = {
    "100 MB declared": (lambda: declared(b" " * 70_000, 100_000_000), 413),
    "100 MB chunked": (lambda: endless(100_000_000), 413),
    "gzip bomb": (lambda: declared(bomb(), None, "Content-Encoding: gzip"), 415),
    "100k deep lists": (lambda: declared(b"[" * 100_000 + b"]" * 100_000), 400),
    "100k deep objects": (lambda: declared(b'{"a":' * 100_000 + b"0" + b"}" * 100_000), 400),
    "1M keys": (lambda: declared(with_keys(1_000_000)), 413),
    "170k keys": (lambda: declared(with_keys(170_000)), 422),
    "49k keys": (lambda: declared(with_keys(49_000)), 200),
    "600k lists": (lambda: declared(b"[" + b"[]," * 600_000 + b"0]"), 422),
    "10 MB string": (lambda: declared(json.dumps({"inputs": "a" * 10_000_000}).encode()), 413),
    "1e400": (lambda: declared(parameter(b"1e400")), 400),
    "NaN": (lambda: declared(parameter(b"NaN")), 400),
    "5000 digits": (lambda: declared(parameter(b"9" * 5_000)), 400),
    "lone surrogate": (lambda: declared(rb'{"inputs": "\ud800"}'), 422),
}


@dataclass
class Outcome:
    status: int
    answer_s: float  # since the first piece was sent: all of the body, or as much as the limit
    read: int
    grown: int


def attack(server: ServerProcess, pieces: Iterator[bytes]) -> Outcome:
    sent = list(pieces)  # made before the clock starts
    forget_peak(server.pid)
    before_read, before_rss = read_bytes(server.pid), resident_bytes(server.pid)
    with connect(server.port) as connection, ThreadPoolExecutor(1) as reader:
        answered = reader.submit(lambda: (read_answer(connection), time.perf_counter()))
        start_s = time.perf_counter()
        with suppress(OSError):
            for index, piece in enumerate(sent):
                connection.sendall(piece)
                if index == 0 and not answered.done():
                    start_s = time.perf_counter()
        received, end_s = answered.result()
    return Outcome(
        parse(received).status,
        end_s - start_s,
        read_bytes(server.pid) - before_read,
        peak_bytes(server.pid) - before_rss,
    )


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_body(attacked: ServerProcess, name: str) -> None:
    make, status = CASES[name]
    outcomes = [attack(attacked, make()) for _ in range(ROUNDS)]
    print(f"\n{name}: {outcomes}")
    assert {outcome.status for outcome in outcomes} == {status}
    if status != 200:
        assert min(outcome.answer_s for outcome in outcomes) <= ANSWER_S
    assert max(outcome.read for outcome in outcomes) <= LIMIT + MORE_READ + ONE_READ
    assert max(outcome.grown for outcome in outcomes) <= MORE_RSS
