"""The request id in and out, and what log lines say about who a request is."""

import json
import logging
import re

import pytest

from support.edge_server import EdgeServer, until
from tiercel.api.auth import ApiKey, KeyRing
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
    until(lambda: server.state.in_flight == 0)
    summaries = [each for each in caplog.records if each.name == "tiercel.api.record"]
    lines = [json.loads(JsonFormatter().format(each)) for each in summaries]
    assert [line["request_id"] for line in lines] == ["r0", "r1", "r2"]
    assert [line.get("trace_id") for line in lines] == [TRACE, None, None]
    first = lines[0]
    assert first["message"] == "request done" and first["route"] == "/generate"
    assert first["queue_ms"] >= 0 and first["prefill_ms"] >= 0 and first["decode_ms"] >= 0
    assert first["total_ms"] >= first["decode_ms"]


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
    ours = [each for each in caplog.records if each.name.startswith(("tiercel", "uvicorn"))]
    assert len(ours) >= len(bodies)
    for each in ours:
        assert planted not in JsonFormatter().format(each)


def _native(inputs: str, **parameters: object) -> dict[str, object]:
    return {"inputs": inputs, "parameters": parameters}
