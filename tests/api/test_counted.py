"""What the edge counts besides answers: refusals by reason, open streams, slow readers, lag."""

import pytest

from support.edge_server import EdgeServer, say, until

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
    with EdgeServer(say(" on and on"), send_timeout_s=0.4, **endless) as server:
        with server.stream(max_new_tokens=1_000_000):
            until(lambda: server.value("tiercel_slow_client_aborts_total") == 1, timeout_s=20)
        until(lambda: server.state.in_flight <= 1)


@pytest.mark.parametrize("per_delta", [1, 3])
def test_a_gap_is_shared_by_the_tokens_that_end_it(per_delta: int) -> None:
    with EdgeServer(say(" a story of the sea", gap_s=0.05, per_delta=per_delta)) as server:
        server.generate(max_new_tokens=7)
        name = "tiercel_inter_token_latency_seconds"
        assert server.value(f"{name}_count") == 7 - per_delta
        deltas = 6 if per_delta == 1 else 2
        assert server.value(f"{name}_sum") == pytest.approx(0.05 * deltas, rel=0.6)


def test_the_loops_lag_is_watched() -> None:
    with EdgeServer() as server:
        until(lambda: server.value("tiercel_event_loop_lag_seconds_count") >= 2)
        assert server.value("tiercel_event_loop_lag_seconds_sum") < 2
