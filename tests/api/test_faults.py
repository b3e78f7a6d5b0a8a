"""Clients that leave or stall, an engine that fails, a full server, a server that drains."""

import json
import logging
import signal
import socket
import struct
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import pytest

from support.edge_server import EdgeServer, ids, say, until
from support.scripted_engine import Play, ScriptedEngine, speak
from tiercel.engine.client import EngineHealth
from tiercel.wire.messages import Token, TokenDelta
from tiercel.wire.request import GenerationRequest

STORY = " a story of the sea and the ships"
ENDLESS: dict[str, Any] = {"max_input_tokens": 1000, "max_total_tokens": 10_000_000}


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """The error records so far; caplog sees those of the server's thread too."""
    caplog.set_level(logging.INFO)
    records: list[logging.LogRecord] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                records.append(record)

    handler = Collect()
    logging.getLogger().addHandler(handler)
    yield records
    logging.getLogger().removeHandler(handler)


def _connect(server: EdgeServer, path: str, **parameters: object) -> socket.socket:
    """A raw connection that has sent a request."""
    body = json.dumps({"inputs": "Hello", "parameters": parameters}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection


def _reset(connection: socket.socket) -> None:
    """Leave at once, with a reset instead of an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


LEAVE = {"closed": socket.socket.close, "reset": _reset}


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("first_s", [0.0, 60.0], ids=["running", "queued"])
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_client_that_leaves_aborts_its_sequence(
    errors: list[logging.LogRecord], path: str, first_s: float, how: str
) -> None:
    play = say(STORY, first_s=first_s, gap_s=0.01)
    with EdgeServer(play, max_concurrent_requests=1, **ENDLESS) as server:
        connection = _connect(server, path, max_new_tokens=1_000_000)
        until(lambda: server.engine.running == 1)
        if first_s == 0.0:
            until(lambda: server.engine.spoken_tokens > 2)
        LEAVE[how](connection)
        until(lambda: server.engine.running == 0)
        assert len(server.engine.aborted) == 1
        until(lambda: server.value("tgi_request_failure", err="dropped") == 1)
        stage = "first_token" if first_s else "decode"
        assert server.value("tiercel_requests_cancelled_total", stage=stage) == 1
        server.engine.play = say(STORY)
        assert server.generate(max_new_tokens=2).status_code == 200
        until(lambda: server.state.in_flight == 0)
    assert errors == []


def test_many_clients_leave_together(errors: list[logging.LogRecord]) -> None:
    with EdgeServer(say(STORY, gap_s=0.005), **ENDLESS) as server:
        paths = ["/generate", "/generate_stream"] * 30
        connections = [_connect(server, path, max_new_tokens=1_000_000) for path in paths]
        until(lambda: server.engine.running == len(paths))
        for connection in connections:
            connection.close()
        until(lambda: server.engine.running == 0)
        until(lambda: server.value("tgi_request_failure", err="dropped") == len(paths))
        until(lambda: server.state.in_flight == 0)
    assert errors == []


def test_a_client_that_does_not_read_is_cut_off() -> None:
    play = speak(ids(STORY), per_delta=50)
    with EdgeServer(play, send_timeout_s=0.3, max_concurrent_requests=1, **ENDLESS) as server:
        connection = _connect(server, "/generate_stream", max_new_tokens=9_000_000)
        until(lambda: server.engine.spoken_tokens > 0)
        until(lambda: server.engine.running == 0, timeout_s=10)
        assert len(server.engine.aborted) == 1
        assert server.value("tgi_request_failure", err="dropped") == 1
        server.engine.play = say(STORY)
        assert server.generate(max_new_tokens=2).status_code == 200
        connection.close()


def _failing(error_type: str) -> Play:
    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        yield TokenDelta(request.id, [Token(ids(" a")[0], -0.5)])
        yield TokenDelta(request.id, [], error="the row was bad", error_type=error_type)

    return play


def test_an_engine_error_is_424_and_an_event_and_no_more() -> None:
    with EdgeServer(_failing("generation")) as server:
        response = server.generate()
        assert response.status_code == 424
        expected = {
            "error": "Request failed during generation: the row was bad",
            "error_type": "generation",
        }
        assert response.json() == expected
        *_, last = server.events()
        assert last == expected
        assert server.value("tgi_request_failure", err="generation") == 2
        server.engine.play = say(STORY)
        assert server.generate(max_new_tokens=2).status_code == 200


def test_a_refusal_by_the_engine_is_422() -> None:
    with EdgeServer(_failing("validation")) as server:
        response = server.generate()
        assert response.status_code == 422
        assert response.json()["error"] == "Input validation error: the row was bad"


class _Breaking(ScriptedEngine):
    """Its streams end without a final token, which the real ones never do."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        yield TokenDelta(request.id, [Token(ids(" a")[0], -0.5)])

    def health(self) -> EngineHealth:
        return EngineHealth(True)


def test_a_stream_of_the_engine_that_just_ends_is_incomplete() -> None:
    with EdgeServer(engine=_Breaking(say(STORY))) as server:
        response = server.generate()
        assert response.status_code == 500
        assert response.json() == {
            "error": "Incomplete generation",
            "error_type": "incomplete_generation",
        }
        first, last = server.events()
        assert first["index"] == 1
        assert last == {
            "error": "Incomplete generation stream",
            "error_type": "incomplete_generation_stream",
        }
        assert server.value("tgi_request_failure", err="incomplete") == 2


def test_one_requests_fault_stays_with_it(errors: list[logging.LogRecord]) -> None:
    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        if request.max_new_tokens == 13:  # ids and logprobs that do not belong together
            yield TokenDelta(request.id, [Token(5, -0.5, [1, 2], [-0.5])])
        async for delta in say(STORY, gap_s=0.02)(request):
            yield delta

    with EdgeServer(play) as server:
        answers: list[int] = []
        neighbour = threading.Thread(
            target=lambda: answers.append(server.generate(max_new_tokens=20).status_code)
        )
        neighbour.start()
        until(lambda: server.engine.running == 1)
        broken = server.generate(max_new_tokens=13)
        (event,) = server.events(max_new_tokens=13)
        neighbour.join()
        assert broken.status_code == 424
        assert broken.json()["error_type"] == event["error_type"] == "generation"
        assert answers == [200]
        assert len(server.engine.aborted) == 2
    with_traceback = [record for record in errors if record.exc_info]
    assert len(with_traceback) == 2


def test_a_full_server_is_429_and_an_event() -> None:
    with EdgeServer(say(STORY, gap_s=0.01), max_concurrent_requests=1, **ENDLESS) as server:
        running = _connect(server, "/generate_stream", max_new_tokens=1_000_000)
        until(lambda: server.engine.running == 1)
        response = server.generate()
        assert response.status_code == 429
        assert response.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
        assert int(response.headers["retry-after"]) > 0
        (event,) = server.events()
        assert event == response.json()
        assert server.value("tgi_request_failure", err="overloaded") == 2
        assert server.generate(best_of=3, do_sample=True).status_code == 422
        assert server.generate(best_of=2, do_sample=True).status_code == 429
        running.close()
        until(lambda: server.engine.running == 0)
        server.engine.play = say(STORY)
        for _ in range(3):
            assert server.generate(max_new_tokens=2).status_code == 200
            assert len(server.events(max_new_tokens=2)) == 2
        server.generate(temperature=0)
        assert server.generate(max_new_tokens=2).status_code == 200


def test_draining_finishes_what_runs_and_refuses_what_is_new() -> None:
    with EdgeServer(say(STORY, gap_s=0.02)) as server, server.stream(max_new_tokens=30) as stream:
        pieces = stream.iter_raw()
        content = next(pieces)
        server.state.draining = True
        for path in ("/generate", "/generate_stream", "/", "/tokenize"):
            refused = server.post(path, {"inputs": "x"})
            assert refused.status_code == 503
            assert refused.json()["error_type"] == "healthcheck"
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["connection"] == "close"
        assert server.http.get("/health").status_code == 503
        assert server.http.get("/metrics").status_code == 200
        assert server.state.in_flight == 1
        content += b"".join(pieces)
        assert content.count(b'"index"') == 30
        assert b'"generated_text":" a story' in content
        until(lambda: server.state.in_flight == 0)


def test_a_stopping_uvicorn_does_not_cut_streams() -> None:
    """sse_starlette would, as soon as it finds a stopping server behind the signal's handler."""
    with EdgeServer(say(STORY, gap_s=0.05)) as server, server.stream(max_new_tokens=30) as stream:
        previous = signal.signal(signal.SIGTERM, server.uvicorn.handle_exit)
        try:
            pieces = stream.iter_raw()
            content = next(pieces)
            server.uvicorn.should_exit = True
            content += b"".join(pieces)
        finally:
            signal.signal(signal.SIGTERM, previous)
    assert content.count(b'"index"') == 30


def test_the_summary_line_has_figures_and_no_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with EdgeServer() as server:
        server.generate("my private prompt", max_new_tokens=3)
        server.generate("my private prompt", temperature=0)
        until(lambda: server.state.in_flight == 0)
        time.sleep(0.05)
    summaries = [record for record in caplog.records if record.name == "tiercel.api.summary"]
    done, failed = summaries
    fields = done.__dict__["fields"]
    assert fields["route"] == "/generate" and fields["generated_tokens"] == 3
    assert fields["finish_reason"] == "length" and fields["total_ms"] >= 0
    assert failed.levelno == logging.INFO
    assert failed.__dict__["fields"]["error_type"] == "validation"
    ours = [record for record in caplog.records if record.name.startswith("tiercel")]
    for record in ours:
        assert "private" not in record.getMessage() + str(record.__dict__.get("fields"))
        assert "story" not in record.getMessage() + str(record.__dict__.get("fields"))
