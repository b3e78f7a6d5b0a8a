"""What the edge counts besides answers: refusals by reason, open streams, slow readers, lag."""

import json
import logging
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from support.edge_server import STORY, EdgeServer, say, until
from tiercel.engine import streams
from tiercel.telemetry.logs import fields_of
from tiercel.wire.messages import TokenDelta
from tiercel.wire.request import GenerationRequest

REJECTED = "tiercel_requests_rejected_total"


def test_refusals_by_reason() -> None:
    with EdgeServer(say(" on and on", gap_s=0.02), max_concurrent_requests=1) as server:
        assert server.generate(temperature=0).status_code == 422
        assert server.http.post("/generate", content=b"{").status_code == 415
        assert server.post("/generate", {"parameters": {}}).status_code == 422
        assert server.post("/v1/chat/completions", {"messages": "x"}).status_code == 422
        with server.stream(max_new_tokens=100):
            until(lambda: server.engine.running == 1)
            assert server.generate().status_code == 429
        server.state.draining = True
        assert server.generate().status_code == 503
        assert server.http.get("/health").status_code == 503
        server.state.draining = False
        reasons = ("validation", "body", "overloaded", "draining", "unauthorized", "template")
        counts = {reason: server.value(REJECTED, reason=reason) for reason in reasons}
    assert counts == {
        "validation": 1, "body": 3, "overloaded": 1, "draining": 1, "unauthorized": 0,
        "template": 0,
    }  # fmt: skip


def test_open_streams_and_finishes() -> None:
    with EdgeServer(say(" on and on", gap_s=0.02)) as server:
        assert server.value("tiercel_sse_streams_open") == 0
        with server.stream(max_new_tokens=100):
            until(lambda: server.value("tiercel_sse_streams_open") == 1)
        until(lambda: server.value("tiercel_sse_streams_open") == 0)
        assert server.generate(max_new_tokens=2).status_code == 200
        assert server.value("tiercel_requests_finished_total", reason="length") == 1
        assert server.value("tiercel_prompt_tokens_total") > 0


def test_a_reader_that_stopped_is_counted() -> None:
    endless = {"max_input_tokens": 1000, "max_total_tokens": 10_000_000}
    with EdgeServer(say(" on and on", per_delta=50), send_timeout_s=0.4, **endless) as server:
        with server.stream(max_new_tokens=1_000_000):
            until(lambda: server.value("tiercel_slow_client_aborts_total") == 1, timeout_s=20)
        until(lambda: server.state.in_flight <= 1)


def test_a_reader_that_the_engine_gives_up_has_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no failure of the server's: nothing that an alert on errors may hear."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(streams, "SLOW_CLIENT_S", 0.2)
    endless = {"max_input_tokens": 1000, "max_total_tokens": 10_000_000}
    with EdgeServer(say(" on and on", per_delta=50), **endless) as server:
        with server.stream(max_new_tokens=1_000_000) as response:
            until(lambda: server.engine.aborted != [], timeout_s=20)
            last = json.loads(response.read().rstrip().rpartition(b"data: ")[2])
        until(lambda: server.value("tiercel_slow_client_aborts_total") == 1)
        assert server.value("tgi_request_failure", err="dropped") == 1
        assert server.value("tgi_request_failure", err="generation") == 0
        assert server.value("tiercel_requests_cancelled_total", stage="decode") == 1
        until(lambda: any(each.name == "tiercel.api.summary" for each in caplog.records))
    assert last["error_type"] == "generation"  # what a client is told has not changed
    (line,) = [each for each in caplog.records if each.name == "tiercel.api.summary"]
    assert (line.levelno, line.getMessage()) == (logging.INFO, "request dropped")
    assert "reads too slowly" in fields_of(line)["error"]  # type: ignore[operator]


def test_who_leaves_the_queue_has_waited() -> None:
    with EdgeServer(say(STORY, first_s=60.0)) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.post("/generate", {"inputs": "Hello"}, timeout=0.4)
        until(lambda: server.value("tiercel_requests_cancelled_total", stage="first_token") == 1)
        assert server.value("tiercel_queue_time_seconds_count") == 1
        assert 0.3 <= server.value("tiercel_queue_time_seconds_sum") < 5


def test_who_fails_before_a_token_has_waited_as_the_engine_says() -> None:
    async def fail(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        yield TokenDelta(request.id, [], error="broken", error_type="generation", queue_s=0.25)

    with EdgeServer(fail) as server:
        assert server.generate().status_code == 424
        assert server.value("tiercel_queue_time_seconds_count") == 1
        assert server.value("tiercel_queue_time_seconds_sum") == 0.25


@pytest.mark.parametrize("per_delta", [1, 3])
def test_a_gap_is_shared_by_the_tokens_that_end_it(per_delta: int) -> None:
    with EdgeServer(say(" a story of the sea", gap_s=0.05, per_delta=per_delta)) as server:
        began = time.monotonic()
        server.generate(max_new_tokens=7)
        took_s = time.monotonic() - began
        name = "tiercel_inter_token_latency_seconds"
        assert server.value(f"{name}_count") == 7 - per_delta
        deltas = 6 if per_delta == 1 else 2
        assert 0.02 * deltas <= server.value(f"{name}_sum") <= took_s  # no gap counts twice


def test_the_loops_lag_is_watched() -> None:
    with EdgeServer() as server:
        until(lambda: server.value("tiercel_event_loop_lag_seconds_count") >= 2)
        assert server.value("tiercel_event_loop_lag_seconds_sum") < 2
