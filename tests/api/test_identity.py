"""The request id in and out, and what log lines say about who a request is."""

import json
import logging
import re
import time
from typing import Any

import httpx
import pytest

from support.edge_server import STORY, EdgeServer, say, until
from tiercel.api.auth import ApiKey, KeyRing, load_keys
from tiercel.telemetry.logs import JsonFormatter

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
BODY = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}}


def test_a_callers_id_comes_back_and_any_other_is_made(server: EdgeServer) -> None:
    made = set()
    for given in ("", "a b", "x" * 65, "é", "a,b", "<x>"):
        response = server.http.get("/info", headers={"x-request-id": given.encode()})
        made.add(response.headers["x-request-id"])
    assert len(made) == 6 and all(re.fullmatch("[0-9a-f]{16}", each) for each in made)
    for given in ("a", "job-7.part_2", "x" * 64):
        for path in ("/info", "/nothing", "/generate"):
            response = server.http.get(path, headers={"x-request-id": given})
            assert response.headers["x-request-id"] == given


def test_refusals_are_named_too() -> None:
    keys = KeyRing([ApiKey("one", b"0" * 32)])
    with EdgeServer(keys=keys) as server:
        response = server.http.post("/generate", json=BODY, headers={"x-request-id": "mine"})
        assert (response.status_code, response.headers["x-request-id"]) == (401, "mine")
        assert server.value("tiercel_requests_rejected_total", reason="unauthorized") == 1


def test_the_summary_names_request_and_trace(
    server: EdgeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parents = (f"00-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", "nonsense")
    for number, parent in enumerate(parents):
        headers = {"x-request-id": f"r{number}", "traceparent": parent}
        assert server.http.post("/generate", json=BODY, headers=headers).status_code == 200
    lines = summaries(caplog, 3)
    assert [line["request_id"] for line in lines] == ["r0", "r1", "r2"]
    assert [line.get("trace_id") for line in lines] == [TRACE, None, None]
    first = lines[0]
    assert first["message"] == "request done" and first["route"] == "/generate"
    assert first["status"] == 200
    assert first["queue_ms"] >= 0 and first["prefill_ms"] >= 0 and first["decode_ms"] >= 0
    assert first["total_ms"] >= first["decode_ms"]


def test_every_request_has_a_line_with_its_status(caplog: pytest.LogCaptureFixture) -> None:
    """Also those that no route has seen; probes and scrapes have none, unless their key is bad."""
    caplog.set_level(logging.INFO)
    keys = KeyRing(load_keys(["one"], None))
    good, bad = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    play = say(STORY, gap_s=0.02)
    with EdgeServer(play, keys=keys, max_concurrent_requests=1, protect_metrics=True) as server:
        post = server.http.post
        wanted: list[tuple[str, str, int, str | None]] = []

        def sent(outcome: str, route: str, response: httpx.Response, error: str | None) -> None:
            wanted.append((f"request {outcome}", route, response.status_code, error))
            summaries(caplog, len(wanted))  # before the next, whose line might overtake

        sent("done", "/generate", post("/generate", json=BODY, headers=good), None)
        sent("done", "/tokenize", post("/tokenize", json=BODY, headers=good), None)
        sent("refused", "/generate", post("/generate", json=BODY, headers=bad), "unauthorized")
        refused = server.http.get("/metrics", headers=good)
        sent("refused", "/metrics", refused, "forbidden")
        sent("refused", "/generate", post("/generate", json=[], headers=good), "body")
        sent("refused", "/nothing", post("/nothing", json=BODY, headers=good), None)
        hot = _native("x", temperature=0)
        sent("failed", "/generate", post("/generate", json=hot, headers=good), "validation")
        stream = post("/generate_stream", json=hot, headers=good)
        sent("failed", "/generate_stream", stream, "validation")
        server.state.draining = True
        sent("refused", "/generate", post("/generate", json=BODY, headers=good), "healthcheck")
        for path in ("/health", "/ping", "/v1/models", "/nothing"):
            server.http.get(path, headers=good)
        lines = summaries(caplog, len(wanted))
    assert [status for _, _, status, _ in wanted] == [200, 200, 401, 403, 422, 404, 422, 200, 503]
    found = [
        (line["message"], line["route"], line["status"], line.get("error_type")) for line in lines
    ]
    assert found == wanted
    assert all(line["total_ms"] >= 0 and line["request_id"] for line in lines)


def test_who_left_before_an_answer_has_the_status_of_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with EdgeServer(say(STORY, first_s=60.0)) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/generate", json=BODY, timeout=0.3)
        (line,) = summaries(caplog, 1)
    assert (line["message"], line["status"], line["stage"]) == (
        "request dropped",
        499,
        "first_token",
    )
    assert line["queue_ms"] >= 200


def summaries(caplog: pytest.LogCaptureFixture, count: int) -> list[dict[str, Any]]:
    """The summary lines so far, which are as many as that. They follow the answers."""

    def found() -> list[logging.LogRecord]:
        return [each for each in caplog.records if each.name == "tiercel.api.summary"]

    until(lambda: len(found()) >= count)
    time.sleep(0.05)  # one too many would be here by now
    return [json.loads(JsonFormatter().format(each)) for each in found()]


def test_words_of_users_and_model_stay_out_of_the_log(
    server: EdgeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the sentence that the caller gets quotes them."""
    caplog.set_level(logging.DEBUG)
    planted = "plantedWord77"
    chat = {"messages": [{"role": "user", "content": planted}], "max_tokens": 3}
    tool = {"type": "function", "function": {"name": planted, "parameters": {"type": "object"}}}
    chosen, other = (
        {"tool_choice": {"type": "function", "function": {"name": name}}}
        for name in (planted, planted * 2)
    )
    limits = {"max_new_tokens": 3}
    bodies = [
        ("/generate", _native(planted, **limits, stop=[planted])),
        ("/generate", _native("x", grammar={"type": "regex", "value": f"({planted}"})),
        ("/generate", _native("x", grammar={"type": "json", "value": planted})),
        ("/generate", _native(planted, temperature=0)),
        ("/v1/chat/completions", {**chat, "tools": [tool], **chosen}),
        ("/v1/chat/completions", {**chat, "tools": [tool], **other}),
        ("/v1/chat/completions", {"messages": [{"role": planted, "content": planted}]}),
        ("/v1/completions", {"prompt": planted, "max_tokens": 3, "suffix": planted}),
    ]
    for path, body in bodies:
        server.http.post(path, json=body)
    until(lambda: server.state.in_flight == 0)
    assert len(summaries(caplog, len(bodies))) == len(bodies)
    ours = [each for each in caplog.records if each.name.startswith(("tiercel", "uvicorn"))]
    assert len(ours) >= len(bodies)
    for each in ours:
        assert planted not in JsonFormatter().format(each)


def _native(inputs: str, **parameters: object) -> dict[str, object]:
    return {"inputs": inputs, "parameters": parameters}
