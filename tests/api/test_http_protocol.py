"""The HTTP/1.1 protocol: what is malformed, too large or too late never reaches a route."""

import inspect
import json
import socket
import time
from collections.abc import Iterator

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from support.edge_server import STORY, EdgeServer, say, until
from support.raw_http import ask, connect, get, parse, post, read_answer
from tiercel.api.auth import KeyRing, load_keys
from tiercel.api.http_protocol import LimitedHttpProtocol, ReceiveLimits, limited_protocol

SOON = ReceiveLimits(header_timeout_s=0.4, body_timeout_s=0.8, linger_s=0.3)
BODY = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 2}}).encode()
CHUNKED = b"POST /generate HTTP/1.1\r\nContent-Type: application/json\r\n"
CHUNKED += b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def hasty() -> Iterator[EdgeServer]:
    with EdgeServer(say(STORY), receive=SOON) as server:
        yield server


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def closed_after(connection: socket.socket) -> float:
    """Seconds until the server closes; what it says before is dropped."""
    start_s = time.perf_counter()
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.perf_counter() - start_s


def test_the_internals_of_uvicorn_that_are_relied_on() -> None:
    """If this fails after an upgrade, read uvicorn's protocol again before raising the bound."""
    overridden = [
        name
        for name, value in vars(LimitedHttpProtocol).items()
        if inspect.isfunction(value) and hasattr(HttpToolsProtocol, name)
    ]
    assert set(overridden) >= {
        "connection_made", "connection_lost", "data_received", "on_message_begin", "on_url",
        "on_header", "on_headers_complete", "on_body", "on_message_complete",
        "on_response_complete", "_start_asgi_task",
    }  # fmt: skip
    for name in overridden:
        ours = inspect.signature(getattr(LimitedHttpProtocol, name))
        theirs = inspect.signature(getattr(HttpToolsProtocol, name))
        if name != "__init__":
            assert list(ours.parameters) == list(theirs.parameters), name
    made = inspect.getsource(HttpToolsProtocol.__init__)
    for attribute in ("parser", "loop", "transport", "flow", "pipeline", "headers", "cycle"):
        assert f"self.{attribute}" in made
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    for attribute in (
        "transport", "message_event", "disconnected", "keep_alive", "more_body",
        "response_started", "response_complete", "expected_content_length",
    ):  # fmt: skip
        assert f"self.{attribute} =" in cycle
    assert "self.chunked_encoding: " in cycle
    assert "self.transport.close()" in inspect.getsource(RequestResponseCycle.send)
    assert hasattr(HttpToolsProtocol, "_unset_keepalive_if_required")


def test_limits_belong_to_the_class() -> None:
    assert limited_protocol(SOON).limits is SOON
    assert LimitedHttpProtocol.limits == ReceiveLimits()


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/health", "X: " + "a" * 65_536),
        get("/health", *(f"X{n}: a" for n in range(10_000))),
        get("/health", *(f"X{n}: a" for n in range(129))),
        get("/health", *(f"X{n}: {'a' * 2_000}" for n in range(20))),
        get("/health?" + "a" * 40_000),
        b"GET /health HTTP/1.1\r\nX: " + b"a" * 200_000,
        b"GET /health HTTP/1.1\r\n" + b"a" * 200_000,
        b"GET /" + b"a" * 200_000,
        b"\r\n" * 50_000,
        CHUNKED + chunk(BODY) + b"0\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
    ],
    ids=lambda request: str(request[:30]),
)
def test_heads_that_are_too_large(server: EdgeServer, request_bytes: bytes) -> None:
    answer = ask(server.port, request_bytes)
    assert answer.status == 431
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert b"too " in answer.body


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/health", "X: " + "a" * 30_000),
        get("/health", *(f"X{n}: {'a' * 200}" for n in range(120))),
        get("/health?" + "a" * 30_000),
        b"\r\n\r\n" + get("/health"),
        post("/generate", BODY + b" " * 1_000_000),
        CHUNKED + chunk(BODY) + b"0\r\n\r\n",
        CHUNKED + b"".join(chunk(b" ") for _ in range(50_000)) + chunk(BODY) + b"0\r\n\r\n",
        CHUNKED + chunk(BODY) + b"0\r\nX-Trailer: a\r\n\r\n",
        get("http://elsewhere.example/health"),
        get("/health", "Host: a/?x="),
    ],
    ids=lambda request: str(request[:60]),
)
def test_what_is_large_or_odd_but_allowed(server: EdgeServer, request_bytes: bytes) -> None:
    assert ask(server.port, request_bytes).status == 200


def test_large_bodies_do_not_count_as_heads(server: EdgeServer) -> None:
    """Several requests in one piece: the end of one body and the next head arrive together."""
    large = post("/generate", BODY + b" " * 300_000)
    with connect(server.port) as connection:
        connection.sendall(large + large + get("/health", "Connection: close"))
        received = b""
        while more := connection.recv(65_536):
            received += more
    assert received.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /h\xc3\xa9 HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX : a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: a\r\n folded\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: a\rInjected: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: a\nInjected: b\n\n",
        b"GET /health HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\n\r\n",
        post("/generate", BODY, f"Content-Length: {len(BODY)}"),
        post("/generate", BODY, "Content-Length: 0"),
        post("/generate", BODY, "Transfer-Encoding: chunked"),
        CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n" + chunk(BODY) + b"0\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nContent-Length: +5\r\n\r\nabcde",
        b"POST /generate HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\nabcde",
        b"POST /generate HTTP/1.1\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        CHUNKED + b"%x\n%s\n0\n\n" % (len(BODY), BODY),
        CHUNKED + b"%x\r\n%sX\r\n0\r\n\r\n" % (len(BODY), BODY),
        CHUNKED + b"zz\r\n\r\n",
        CHUNKED + b"f" * 30 + b"\r\n",
        CHUNKED + b"-1\r\n\r\n",
    ],
    ids=lambda request: str(request[-60:]),
)
def test_malformed_requests(server: EdgeServer, request_bytes: bytes) -> None:
    answer = ask(server.port, request_bytes)
    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert answer.rest == b""
    until(lambda: server.state.in_flight == 0)


@pytest.mark.parametrize("version", [b"", b" HTTP/0.9", b" HTTP/2.0"])
def test_other_versions_of_http(server: EdgeServer, version: bytes) -> None:
    assert ask(server.port, b"GET /health" + version + b"\r\n\r\n").status == 505


@pytest.mark.parametrize(("path", "parts"), [("/generate", 1), ("/generate_stream", 2)])
def test_http_1_0_has_no_chunks(server: EdgeServer, path: str, parts: int) -> None:
    """What has no length ends with the connection."""
    with connect(server.port) as connection:
        connection.sendall(post(path, BODY).replace(b"HTTP/1.1", b"HTTP/1.0"))
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert [line for line in head.split(b"\r\n") if b"connection" in line] == [b"connection: close"]
    assert (b"content-length" in head, b"transfer-encoding" in head) == (parts == 1, False)
    events = [json.loads(part.removeprefix(b"data:")) for part in body.split(b"\n\n") if part]
    assert len(events) == parts


def test_trailers_are_no_headers() -> None:
    """A proxy in front has checked the headers, not these."""
    keys = KeyRing(load_keys(["Secret1"], None))
    trailer = b"0\r\nAuthorization: Bearer Secret1\r\n\r\n"
    with EdgeServer(keys=keys) as server:
        assert ask(server.port, CHUNKED + chunk(BODY) + trailer).status == 401


def test_upgrades_are_ignored(server: EdgeServer) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA==")
    answer = ask(server.port, get("/health", *upgrade))
    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_body_behind_an_upgrade_is_read(server: EdgeServer) -> None:
    """Java's HTTP client offers HTTP/2 with the first request, whatever that is."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA")
    request = post("/generate", BODY, *offer)
    answer = ask(server.port, request)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    with connect(server.port) as connection:
        for piece in (request[:50], request[50:-10], request[-10:-5], request[-5:]):
            connection.sendall(piece)
            time.sleep(0.02)
        assert parse(read_answer(connection)).body == answer.body


def test_an_upgrade_behind_another_request(server: EdgeServer) -> None:
    server.engine.play = say(STORY, gap_s=0.02)
    upgrade = get("/health", "Connection: Upgrade", "Upgrade: websocket")
    with connect(server.port) as connection:
        connection.sendall(post("/generate", BODY) + upgrade)
        received = b""
        while more := connection.recv(65_536):
            received += more
    assert received.count(b"HTTP/1.1 200 OK") == 2


def test_garbage_behind_a_request_does_not_spoil_its_answer(server: EdgeServer) -> None:
    answer = ask(server.port, post("/generate", BODY) + b"\x00\x01garbage\r\n\r\n")
    assert answer.status == 200
    assert answer.rest == b""


def test_a_stream_is_not_interrupted_by_garbage(server: EdgeServer) -> None:
    server.engine.play = say(STORY, gap_s=0.02)
    with connect(server.port) as connection:
        connection.sendall(post("/generate_stream", BODY))
        until(lambda: server.state.in_flight == 1)
        connection.sendall(b"garbage\r\n\r\n")
        received = read_answer(connection)
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.endswith(b"0\r\n\r\n")


def test_a_client_that_leaves_with_a_second_request_waiting_cancels_the_first(
    server: EdgeServer,
) -> None:
    server.engine.play = say(STORY, gap_s=0.05)
    body = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 60}}).encode()
    aborted = len(server.engine.aborted)
    with connect(server.port) as connection:
        connection.sendall(post("/generate_stream", body) + get("/health"))
        received = b""
        while b"data: " not in received:  # the headers come before there is anything to abort
            received += connection.recv(100)
    until(lambda: len(server.engine.aborted) > aborted)
    until(lambda: server.state.in_flight == 0)


def test_silent_and_slow_heads_end_at_the_deadline(hasty: EdgeServer) -> None:
    limit_s = SOON.header_timeout_s
    with connect(hasty.port) as silent:
        assert limit_s * 0.8 < closed_after(silent) < limit_s + 1.0
    with connect(hasty.port) as slow:
        start_s = time.perf_counter()
        received = b""
        slow.settimeout(0.05)
        for byte in b"GET /health HTTP/1.1\r\nX: " + b"a" * 100:
            try:
                slow.sendall(bytes([byte]))
                received = slow.recv(1000)
                break
            except TimeoutError:
                continue
        assert parse(received).status == 408
        assert limit_s * 0.8 < time.perf_counter() - start_s < limit_s + 1.0


def test_empty_lines_do_not_hold_a_connection(hasty: EdgeServer) -> None:
    with connect(hasty.port) as connection:
        connection.sendall(b"\r\n\r\n")
        assert closed_after(connection) < SOON.header_timeout_s + 1.0


def test_the_next_head_has_a_deadline_too(hasty: EdgeServer) -> None:
    with connect(hasty.port) as connection:
        connection.sendall(get("/health"))
        assert parse(read_answer(connection)).status == 200
        time.sleep(SOON.header_timeout_s + 0.2)  # idle is something else, and allowed
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert parse(read_answer(connection)).status == 408


@pytest.mark.parametrize("head", [post("/generate", BODY)[:-10], CHUNKED + b"5\r\nab"])
def test_bodies_end_at_the_deadline(hasty: EdgeServer, head: bytes) -> None:
    answer = ask(hasty.port, head)
    assert answer.status == 408
    assert SOON.body_timeout_s * 0.8 < answer.elapsed_s < SOON.body_timeout_s + 1.0
    until(lambda: hasty.state.in_flight == 0)


def test_long_answers_have_no_deadline(hasty: EdgeServer) -> None:
    hasty.engine.play = say(STORY, gap_s=0.05)
    body = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 40}}).encode()
    answer = ask(hasty.port, post("/generate", body))
    assert answer.status == 200
    assert answer.elapsed_s > SOON.body_timeout_s


def test_an_early_answer_to_a_small_body_keeps_the_connection(server: EdgeServer) -> None:
    request = post("/nothing", b"x" * 1_000)
    with connect(server.port) as connection:
        connection.sendall(request[:-1_000])
        assert parse(read_answer(connection)).status == 404
        connection.sendall(request[-1_000:] + get("/health"))
        assert parse(read_answer(connection)).status == 200


@pytest.mark.parametrize("path", ["/nothing", "/generate"])
def test_an_early_answer_to_a_large_body_ends_the_connection(server: EdgeServer, path: str) -> None:
    """The answer arrives whole, though the client is still sending."""
    head = post(path, b"", "X: y")[:-2].replace(b"Content-Length: 0", b"Content-Length: 100000000")
    with connect(server.port) as connection:
        connection.sendall(head + b"\r\n" + b" " * 100_000)
        received = read_answer(connection)
        assert parse(received).status in (404, 413)
        assert closed_after(connection) < 3.0


def test_an_endless_chunked_body_is_cut(server: EdgeServer) -> None:
    sent = 0
    piece = chunk(b" " * 60_000)
    with connect(server.port) as connection:
        connection.sendall(CHUNKED)
        try:
            while sent < 100_000_000:
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        assert parse(read_answer(connection)).status == 413
    assert sent < 30_000_000  # the rest is what the sockets of both sides hold


def test_who_never_reads_an_answer_is_cut_off() -> None:
    """Pipelined pages, until the kernel's buffers are full and one of them waits."""
    ask = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
    with (
        EdgeServer(receive=ReceiveLimits(unread_timeout_s=0.5)) as server,
        socket.create_connection(("127.0.0.1", server.port)) as connection,
    ):
        connection.sendall(ask * 100)
        until(lambda: server.state.in_flight == 1)
        began_s = time.monotonic()
        while server.state.in_flight:
            assert time.monotonic() - began_s < 10
            time.sleep(0.01)
        assert server.http.get("/health").status_code == 200


def test_who_reads_slowly_is_not_cut_off() -> None:
    """For longer than the limit, but never so long without a byte."""
    ask = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
    with EdgeServer(receive=ReceiveLimits(unread_timeout_s=1.5)) as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(ask * 100)
        answers, rest, began_s = 0, b"", time.monotonic()
        while answers < 100:
            piece = slow.recv(60_000)
            assert piece, "it was cut off"
            answers += (rest + piece).count(b"HTTP/1.1 200 OK")
            rest = piece[-14:]  # a part of that, but never the whole
            time.sleep(0.02)
        assert time.monotonic() - began_s > 2.0
