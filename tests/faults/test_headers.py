"""R-27: hostile requests lines and headers against a real server with keys."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.raw_http import RawAnswer, ask, get, post
from support.server import make_server
from tiercel.bench.server import ServerProcess

BODY = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 1}}).encode()
KEY = "Authorization: Bearer Secret1"
MARK = "PLANTED7"  # never to be seen again
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\S+Z [A-Z]+ +tiercel\S*: ")
CHUNKED = ("Content-Type: application/json", "Transfer-Encoding: chunked", KEY)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[ServerProcess]:
    variables = {"API_KEY": "Secret1"}
    folder = tmp_path_factory.mktemp("keyed")
    with make_server(folder, small_model, "--log-level", "debug", variables=variables) as server:
        yield server
        assert server.health() == 200
        lines = server.log().partition(" serving ")[2].splitlines()[1:]
        assert lines
        assert [line for line in lines if not STAMP.match(line)] == [], "a line was broken"
        assert MARK not in server.log()
        assert "Traceback" not in server.log()


def chunked(*pieces: bytes) -> bytes:
    head = "\r\n".join(["POST /generate HTTP/1.1", *CHUNKED])
    return head.encode() + b"\r\n\r\n" + b"".join(pieces)


def generate(*headers: str) -> bytes:
    return post("/generate", BODY, KEY, *headers)


REFUSED = {
    "64 KB header": (get("/health", f"X: {MARK * 8_192}"), 431),
    "10k headers": (get("/health", *(f"X-{n}: {MARK}" for n in range(10_000))), 431),
    "64 KB path": (get(f"/{MARK * 8_192}"), 431),
    "64 KB bearer": (get("/generate", f"Authorization: Bearer {'a' * 65_536}"), 431),
    "bare CR in a value": (get("/health", f"X: a\rX-Injected: {MARK}"), 400),
    "bare LF in a value": (get("/health", f"X: a\nX-Injected {MARK}"), 400),
    "folded value": (get("/health", f"X: a\r\n {MARK}"), 400),
    "NUL in a value": (get("/health", f"X: {MARK}\x00"), 400),
    "space before the colon": (get("/health", f"X : {MARK}"), 400),
    "no colon": (get("/health", MARK), 400),
    "two lengths": (generate(f"Content-Length: {len(BODY)}"), 400),
    "two different lengths": (generate("Content-Length: 0"), 400),
    "length and chunks": (generate("Transfer-Encoding: chunked"), 400),
    "chunks and length": (chunked().replace(b"chunked", b"chunked\r\nContent-Length: 3"), 400),
    "unknown coding": (chunked().replace(b"chunked", b"chunked, x"), 400),
    "chunk ends in LF": (chunked(b"%x\n%s\n0\n\n" % (len(BODY), BODY)), 400),
    "chunk with more": (chunked(b"%x\r\n%sPLANTED7\r\n0\r\n\r\n" % (len(BODY), BODY)), 400),
    "no chunk size": (chunked(b"PLANTED7\r\n"), 400),
    "huge chunk size": (chunked(b"f" * 40 + b"\r\n"), 400),
    "CONNECT": (b"CONNECT PLANTED7:1 HTTP/1.1\r\n\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "latin-1 bearer": (get("/generate", f"Authorization: Bearer {MARK}\xe9\xff"), 401),
    "bearer with a tab": (get("/generate", "Authorization: Bearer\tSecret1"), 401),
    "two bearers": (get("/generate", KEY, "Authorization: Bearer x"), 401),
    "host is the path of a probe": (get("/generate", "Host: a/health?x="), 401),
    "host with a query": (get("/generate", "Host: a/?x="), 401),
    "absolute URI of a probe": (get("http://a/generate?/health", "Host: a/health"), 401),
    "forwarded path": (get("/generate", "X-Forwarded-Prefix: /health"), 401),
    "rewritten path": (get("/generate", "X-Original-URL: /health", "X-Rewrite-URL: /"), 401),
    "method override": (post("/generate", BODY, "X-HTTP-Method-Override: OPTIONS"), 401),
    "dots": (get("/health/../generate"), 401),
    "encoded slash": (get("/health%2f..%2fgenerate"), 401),
    "path with CRLF": (get(f"/%0d%0a{MARK[:0]}x"), 401),
    "asterisk": (get("*"), 401),
}
ALLOWED = {
    "absolute URI": get("http://elsewhere.example/health"),
    "odd host": get("/health", "Host: a/?x="),
    "no host": get("/health"),
    "30 KB header": get("/health", f"X: {'a' * 30_000}"),
    "bad traceparent": generate(f"traceparent: {MARK}"),
    "huge traceparent": generate(f"traceparent: 00-{'a' * 8_000}-{'b' * 16}-01"),
    "zero traceparent": generate(f"traceparent: 00-{'0' * 32}-{'0' * 16}-00"),
    "latin-1 traceparent": generate("traceparent: \xe9\xff"),
    "huge baggage": generate(f"baggage: {MARK}={'a' * 16_000}", "tracestate: ,,,=,"),
    "request id": generate(f"x-request-id: {MARK}\x1b[31m".replace("\x1b", "")),
    "trailers": chunked(b"%x\r\n%s\r\n0\r\nX-%s: a\r\n\r\n" % (len(BODY), BODY, MARK.encode())),
    "preflight": get("/generate").replace(b"GET", b"OPTIONS"),
}


def assert_nothing_reflected(answer: RawAnswer) -> None:
    told = repr(answer.headers) + answer.body.decode("latin-1") + answer.rest.decode("latin-1")
    assert MARK not in told
    assert "injected" not in told.lower()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(keyed: ServerProcess, name: str) -> None:
    request, status = REFUSED[name]
    answer = ask(keyed.port, request)
    assert answer.status == status
    assert_nothing_reflected(answer)


@pytest.mark.parametrize("name", ALLOWED)
def test_answered_as_ever(keyed: ServerProcess, name: str) -> None:
    answer = ask(keyed.port, ALLOWED[name])
    assert answer.status == 200
    if name != "request id":  # its own name, and only as a strict pattern
        assert_nothing_reflected(answer)


def test_a_second_request_cannot_be_hidden_in_a_body(keyed: ServerProcess) -> None:
    """Request smuggling: what follows an odd body is never run as a request of its own."""
    hidden = post("/generate", BODY, KEY)
    for request in (
        generate("Transfer-Encoding: chunked") + hidden,
        generate("Transfer-Encoding : chunked") + hidden,
        chunked(b"0\r\n\r\n".replace(b"\r", b"")) + hidden,
        chunked(b"0;\nX: a\r\n\r\n") + hidden,
    ):
        answer = ask(keyed.port, request)
        assert answer.status == 400
        assert answer.rest == b""
