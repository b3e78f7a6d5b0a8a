"""Errors below /v1 in OpenAI's shape, whoever answers; and TGI's shapes everywhere else."""

import json

import pytest

from support.chats import CHAT, HI, refusal
from support.edge_server import EdgeServer
from tiercel.api.openai.errors import error_document, error_events
from tiercel.errors import GenerationError, Overloaded, ToolError, ValidationError

JSON = {"content-type": "application/json"}
COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"{", JSON, 400, "Failed to parse the request body as JSON"),
        (b'{"messages": "\\ud800"}', JSON, 422, "Failed to deserialize the JSON body"),
        (b"{}", {"content-type": "text/plain"}, 415, "application/json"),
        (b"{}", {}, 415, "application/json"),
        (b" " * 2_000_001, JSON, 413, "2000000"),
        (b"{}", JSON, 422, "Failed to deserialize the JSON body"),
        (b"[]", JSON, 422, "Failed to deserialize the JSON body"),
    ],
)
def test_bodies_that_cannot_be_read(
    server: EdgeServer, path: str, content: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    response = server.http.post(path, content=content, headers=headers)
    refused = refusal(response, status)
    assert said in refused["message"]
    assert refused["type"] == "invalid_request_error"
    assert refused["error_type"] == "validation"


def test_the_missing_field_is_named(server: EdgeServer) -> None:
    for path, field in ((CHAT, "messages"), (COMPLETIONS, "prompt")):
        assert refusal(server.post(path, {}))["param"] == field


def test_no_such_path_and_no_such_method(server: EdgeServer) -> None:
    assert refusal(server.http.get("/v1/nope"), 404)["code"] == "not_found"
    assert refusal(server.http.post("/v1/chat"), 404)["error_type"] == "not_found"
    response = server.http.get(CHAT)
    assert refusal(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


def test_head_has_no_body(server: EdgeServer) -> None:
    response = server.http.head("/v1/nope")
    assert (response.status_code, response.content) == (404, b"")


def test_other_routes_keep_tgis_shapes(server: EdgeServer) -> None:
    response = server.http.post("/generate", content=b"{", headers=JSON)
    assert response.status_code == 400
    assert response.headers["content-type"].startswith("text/plain")
    assert server.http.get("/nope").content == b""
    assert list(server.generate(temperature=0).json()) == ["error", "error_type"]


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"temperature": "x"}, {"tools": 5}])
def test_a_chat_by_another_route_has_openais_errors(
    server: EdgeServer, fields: dict[str, object]
) -> None:
    here = refusal(server.post(CHAT, {"messages": HI, **fields}))
    there = refusal(server.post("/invocations", {"messages": HI, **fields}))
    assert here == there


def test_a_draining_server(server: EdgeServer) -> None:
    server.state.draining = True
    try:
        response = server.post(CHAT, {"messages": HI})
    finally:
        server.state.draining = False
    refused = refusal(response, 503)
    assert (refused["type"], refused["code"]) == ("server_error", "service_unavailable")
    assert response.headers["retry-after"] == "1"


def test_types_and_codes() -> None:
    for error, kind, code, param in (
        (ValidationError("`stop` is too long"), "invalid_request_error", "invalid_value", "stop"),
        (
            ValidationError("grammar is not valid: no"),
            "invalid_request_error",
            "invalid_value",
            "response_format",
        ),
        (ToolError("no"), "invalid_request_error", "tool_error", None),
        (Overloaded(), "rate_limit_error", "rate_limit_exceeded", None),
        (GenerationError("no"), "server_error", "generation", None),
    ):
        inner = json.loads(error_document(error, CHAT))["error"]
        assert (inner["type"], inner["code"], inner["param"]) == (kind, code, param)


def test_fields_have_the_names_that_the_route_knows() -> None:
    error = ValidationError("`inputs` tokens + `max_new_tokens` must be at most 5. Given: 9")
    for route, name in ((CHAT, "messages"), (COMPLETIONS, "prompt")):
        inner = json.loads(error_document(error, route))["error"]
        begin = f"Input validation error: `{name}` tokens + `max_tokens` must"
        assert inner["message"].startswith(begin)
        assert (inner["param"], inner["code"]) == (name, "context_length_exceeded")


def test_events_of_an_error_cannot_be_forged() -> None:
    error = GenerationError("a\n\ndata: [DONE]\n\n\u2028b")
    event, done, rest = error_events(error, CHAT).split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    document = json.loads(event.removeprefix(b"data: "))
    assert document["error"]["http_status_code"] == 424
    assert document["error"]["message"].endswith("\u2028b")
    assert b"\xe2\x80\xa8" not in event


def test_how_many_stop_strings_is_the_servers_to_say(server: EdgeServer) -> None:
    many = {"messages": HI, "max_tokens": 1, "stop": [f"{n}x" for n in range(100)]}
    refused = refusal(server.post(CHAT, many))
    assert "`stop` supports up to 4 stop sequences" in refused["message"]
    assert refused["param"] == "stop"
    with EdgeServer(max_stop_sequences=100) as generous:
        assert generous.post(CHAT, many).status_code == 200
