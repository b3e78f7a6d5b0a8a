"""Routes that generate nothing, and what the framework answers before any route."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import tiercel
from support.edge_server import TOKENIZER, EdgeServer, until

ORIGIN = "https://a.example"


@pytest.fixture(scope="module")
def server() -> Iterator[EdgeServer]:
    with EdgeServer(compute_type="1-test", docker_label="label") as server:
        yield server


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
def test_health_is_200_and_empty(server: EdgeServer, path: str) -> None:
    response = server.http.get(path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
def test_health_of_a_sick_engine_is_503(server: EdgeServer, path: str) -> None:
    server.engine.is_healthy = False
    try:
        response = server.http.get(path)
    finally:
        server.engine.is_healthy = True
    assert response.status_code == 503
    assert response.json() == {"error": "unhealthy", "error_type": "healthcheck"}


def test_an_unknown_path_is_404_and_empty(server: EdgeServer) -> None:
    for path in ("/nope", "/generate/", "/v1"):
        response = server.http.get(path)
        assert (response.status_code, response.content) == (404, b"")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/generate", "POST"),
        ("HEAD", "/generate", "POST"),
        ("PUT", "/", "GET,HEAD,POST"),
        ("DELETE", "/health", "GET,HEAD"),
        ("POST", "/info", "GET,HEAD"),
        ("POST", "/api-doc/openapi.json", "GET,HEAD"),
    ],
)
def test_a_wrong_method_is_405_with_allow(
    server: EdgeServer, method: str, path: str, allow: str
) -> None:
    response = server.http.request(method, path)
    assert (response.status_code, response.content) == (405, b"")
    assert response.headers["allow"] == allow


@pytest.mark.parametrize("path", ["/", "/health", "/info", "/metrics"])
def test_head_is_answered_as_get(server: EdgeServer, path: str) -> None:
    head, get = server.http.head(path), server.http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers.get("content-type") == get.headers.get("content-type")


@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream", "/tokenize"])
def test_415_without_a_json_content_type(server: EdgeServer, path: str) -> None:
    for headers in ({}, {"content-type": "text/plain"}):
        response = server.http.post(path, content=b'{"inputs":"x"}', headers=headers)
        assert response.status_code == 415
        assert response.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream", "/tokenize"])
def test_bad_bodies_are_answered_in_plain_text(server: EdgeServer, path: str) -> None:
    headers = {"content-type": "application/json"}
    truncated = server.http.post(path, content=b'{"inputs": "x"', headers=headers)
    assert truncated.status_code == 400
    missing = server.http.post(path, content=b"{}", headers=headers)
    assert missing.status_code == 422
    assert "inputs" in missing.text
    for response in (truncated, missing):
        assert response.headers["content-type"] == "text/plain; charset=utf-8"


def test_413_over_the_payload_limit(server: EdgeServer) -> None:
    headers = {"content-type": "application/json"}
    limit = server.options.payload_limit
    fits = json.dumps({"inputs": "", "pad": "x" * (limit - 100)})
    assert len(fits) <= limit
    assert server.http.post("/tokenize", content=fits, headers=headers).status_code == 200
    too_large = b'{"inputs":"' + b"x" * limit + b'"}'
    declared = server.http.post("/generate", content=too_large, headers=headers)
    assert declared.status_code == 413
    assert declared.headers["content-type"] == "text/plain; charset=utf-8"

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(too_large), 65536):
            yield too_large[start : start + 65536]

    chunked = server.http.post("/generate", content=pieces(), headers=headers)
    assert chunked.status_code == 413


def test_preflight_from_any_origin(server: EdgeServer) -> None:
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    for path in ("/generate", "/anything"):
        response = server.http.options(path, headers=asked)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "*"
        methods = response.headers["access-control-allow-methods"].replace(" ", "")
        assert {"GET", "POST"} <= set(methods.split(","))
        allowed = response.headers["access-control-allow-headers"].lower()
        assert "content-type" in allowed and "authorization" in allowed
        assert int(response.headers["access-control-max-age"]) > 0


def test_answers_to_another_origin_are_readable_with_their_headers(server: EdgeServer) -> None:
    response = server.http.get("/info", headers={"origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == "*"
    assert "x-generated-tokens" in response.headers["access-control-expose-headers"]


def test_configured_origins_only() -> None:
    with EdgeServer(cors_allow_origin=(ORIGIN,)) as server:
        known = server.http.get("/info", headers={"origin": ORIGIN})
        other = server.http.get("/info", headers={"origin": "https://b.example"})
    assert known.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in other.headers


def test_info_has_the_contracts_keys(server: EdgeServer) -> None:
    info = server.http.get("/info").json()
    fourteen = {
        "model_id": "test/model", "model_sha": None, "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": 128, "max_best_of": 2, "max_stop_sequences": 4,
        "max_input_tokens": 64, "max_total_tokens": 128, "validation_workers": 2,
        "max_client_batch_size": 4, "router": "text-generation-router",
        "version": tiercel.__version__, "sha": None, "docker_label": "label",
    }  # fmt: skip
    assert {key: info[key] for key in fourteen} == fourteen
    older = {
        "model_dtype", "model_device_type", "max_input_length", "waiting_served_ratio",
        "max_batch_total_tokens", "max_waiting_tokens", "max_batch_size", "quantize",
    }  # fmt: skip
    assert set(info) == set(fourteen) | older


def test_openapi_describes_routes_and_bodies(server: EdgeServer) -> None:
    document = server.http.get("/api-doc/openapi.json").json()
    paths = {"/", "/generate", "/generate_stream", "/tokenize", "/info", "/health", "/metrics"}
    assert paths <= set(document["paths"])
    assert set(document["paths"]["/"]) == {"get", "post"}
    schemas = document["components"]["schemas"]
    body = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].rpartition("/")[2] in schemas
    assert schemas["GenerateRequest"]["required"] == ["inputs"]
    for reference in _references(document):
        assert reference.rpartition("/")[2] in schemas, reference


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _tokenize(server: EdgeServer, text: str) -> list[dict[str, Any]]:
    response = server.post("/tokenize", {"inputs": text})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert [name for name in response.headers if name.startswith("x-")] == ["x-request-id"]
    tokens = response.json()
    assert isinstance(tokens, list)
    return tokens


@pytest.mark.parametrize("text", ["Hello there", "naïve é😀 café", "a\u2028b\x85c", "x" * 3000])
def test_tokenize_gives_byte_offsets_and_slices(server: EdgeServer, text: str) -> None:
    tokens = _tokenize(server, text)
    assert [token["id"] for token in tokens] == TOKENIZER.encode(text)
    raw = text.encode()
    for token in tokens:
        assert raw[token["start"] : token["stop"]].decode() == token["text"]


def test_tokens_of_one_character_have_its_span(server: EdgeServer) -> None:
    tokens = [token for token in _tokenize(server, "a😀") if token["text"] == "😀"]
    assert len(tokens) == 4
    assert {(token["start"], token["stop"]) for token in tokens} == {(1, 5)}


def test_tokenize_nothing(server: EdgeServer) -> None:
    before = server.value("tgi_request_count")
    assert _tokenize(server, "") == []
    assert server.value("tgi_request_count") == before


def test_a_client_that_leaves_while_it_sends_does_no_harm(
    server: EdgeServer, caplog: pytest.LogCaptureFixture
) -> None:
    def half() -> Iterator[bytes]:
        yield b'{"inputs": '
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        httpx.post(
            f"{server.url}/generate", content=half(), headers={"content-type": "application/json"}
        )
    until(lambda: server.state.in_flight == 0)
    assert server.http.get("/health").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
