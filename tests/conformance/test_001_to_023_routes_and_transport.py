"""Statements 1 to 23 of the contract's section 11: routes and transport."""

import json
from typing import Any

import httpx
import pytest

from support.conformance import (
    API_KEY,
    FLAGS,
    JSON,
    ORIGIN,
    Api,
    answered,
    unreadable,
)

INFO_KEYS = {
    "model_id", "model_sha", "model_pipeline_tag", "max_concurrent_requests", "max_best_of",
    "max_stop_sequences", "max_input_tokens", "max_total_tokens", "validation_workers",
    "max_client_batch_size", "router", "version", "sha", "docker_label",
}  # fmt: skip
ROUTES = {
    "/": {"get", "post"},
    "/generate": {"post"},
    "/generate_stream": {"post"},
    "/v1/chat/completions": {"post"},
    "/v1/completions": {"post"},
    "/invocations": {"post"},
    "/vertex": {"post"},
    "/tokenize": {"post"},
    "/chat_tokenize": {"post"},
    "/info": {"get"},
    "/v1/models": {"get"},
    "/health": {"get"},
    "/ping": {"get"},
    "/metrics": {"get"},
}
MESSAGES = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
PROMPT = {"prompt": "Hello", "max_tokens": 2}
SHORT = {"inputs": "Hello", "parameters": {"max_new_tokens": 2}}


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "Hello", "parameters": {"max_new_tokens": 2, **parameters}}


def preflight(api: Api, path: str = "/generate", *, origin: str = ORIGIN) -> httpx.Response:
    """What a browser asks before it posts JSON with a key."""
    asks = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    return api.http.options(path, headers=asks)


@pytest.mark.parametrize("path", ["/", "/health", "/ping"])
def test_001_health_is_200_and_empty(api: Api, path: str) -> None:
    response = api.get(path)
    assert response.status_code == 200
    assert response.content == b""


def test_002_nobody_answers_before_the_model_is_ready(api: Api) -> None:
    """The port was polled from the start, and the first 200 means that generating works."""
    assert api.startup, "the server was not seen starting"
    assert set(api.startup) == {None}
    assert api.first == 200


def test_003_wrong_methods_and_unknown_paths(api: Api) -> None:
    wrong = api.get("/generate")
    assert (wrong.status_code, wrong.headers["allow"], wrong.content) == (405, "POST", b"")
    unknown = api.get("/no/such/path")
    assert (unknown.status_code, unknown.content) == (404, b"")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_004_another_content_type_is_415(api: Api, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = api.http.post("/generate", content=json.dumps(SHORT), headers=headers)
    unreadable(response, 415)


@pytest.mark.parametrize("body", [b"Hello", b'{"inputs": "Hello"', b"", b"{'inputs': 'Hello'}"])
def test_005_what_is_not_json_is_400(api: Api, body: bytes) -> None:
    unreadable(api.post("/generate", body), 400, "Failed to parse the request body as JSON")


def test_006_a_missing_field_is_422_and_named(api: Api) -> None:
    response = api.post("/generate", {"parameters": {}})
    unreadable(response, 422, "Failed to deserialize the JSON body into the target type", "inputs")


def test_007_a_field_of_another_type_is_422(api: Api) -> None:
    unreadable(api.post("/generate", {"inputs": 7}), 422, "inputs")


def test_008_too_large_a_body_is_413(api: Api) -> None:
    frame = len(json.dumps({"inputs": "a", "unknown": ""}))
    largest = {"inputs": "a", "unknown": "b" * (2_000_000 - frame)}
    assert api.post("/tokenize", largest).status_code == 200
    unreadable(api.post("/tokenize", {**largest, "inputs": "aa"}), 413)


def test_009_unknown_fields_are_ignored(api: Api) -> None:
    body = {**with_parameters(no_such_parameter=1, stop_sequences=["a"]), "no_such_field": {}}
    assert api.ask("/generate", body) == api.ask("/generate", with_parameters())


def test_010_parameters_cannot_be_null(api: Api) -> None:
    unreadable(api.post("/generate", {"inputs": "Hello", "parameters": None}), 422, "parameters")


@pytest.mark.parametrize("value", [-1, 1.5, "5"])
def test_011_max_new_tokens_is_an_unsigned_integer(api: Api, value: object) -> None:
    response = api.try_generate("Hello", max_new_tokens=value)
    unreadable(response, 422, "parameters.max_new_tokens")


def test_012_a_seed_is_unsigned(api: Api) -> None:
    unreadable(api.try_generate("Hello", seed=-1), 422, "parameters.seed")


@pytest.mark.parametrize("name", ["stop", "details", "do_sample", "watermark"])
def test_013_fields_that_take_no_null(api: Api, name: str) -> None:
    unreadable(api.post("/generate", with_parameters(**{name: None})), 422, f"parameters.{name}")


@pytest.mark.parametrize("name", ["temperature", "top_k", "seed", "grammar", "adapter_id"])
def test_014_fields_that_take_null(api: Api, name: str) -> None:
    answer = api.ask("/generate", with_parameters(**{name: None}))
    assert answer == api.ask("/generate", with_parameters())


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/no/such/path"])
def test_015_a_preflight_from_anywhere(api: Api, path: str) -> None:
    response = preflight(api, path, origin="https://anywhere.example")
    assert response.status_code == 200
    headers = response.headers
    assert headers["access-control-allow-origin"] == "*"
    methods = {name.strip() for name in headers["access-control-allow-methods"].split(",")}
    assert methods >= {"GET", "POST"}
    assert "content-type" in headers["access-control-allow-headers"].lower()


def test_016_a_preflight_allows_authorization(api: Api, api_key_api: Api) -> None:
    assert "authorization" in preflight(api).headers["access-control-allow-headers"].lower()
    listed = preflight(api_key_api)  # a preflight carries no key
    assert listed.status_code == 200
    assert "authorization" in listed.headers["access-control-allow-headers"].lower()


def test_017_an_origin_that_is_not_listed(api_key_api: Api) -> None:
    name = "access-control-allow-origin"
    listed = preflight(api_key_api)
    assert (listed.status_code, listed.headers[name]) == (200, ORIGIN)
    assert name not in preflight(api_key_api, origin="https://b.example").headers
    assert name not in api_key_api.get("/info", origin="https://b.example").headers
    assert api_key_api.get("/info", origin=ORIGIN).headers[name] == ORIGIN


def test_018_without_a_key_it_is_401_and_empty(api_key_api: Api) -> None:
    response = api_key_api.post("/generate", SHORT)
    assert response.status_code == 401
    assert response.content == b""


def test_019_the_key_is_a_bearer_token(api_key_api: Api) -> None:
    answer = api_key_api.ask("/generate", SHORT, authorization=f"Bearer {API_KEY}")
    assert answer["generated_text"]
    for wrong in ("Bearer Secret2", "Bearer Secret", "Bearer", API_KEY, f"Basic {API_KEY}"):
        response = api_key_api.post("/generate", SHORT, authorization=wrong)
        assert (response.status_code, response.content) == (401, b""), wrong


def test_020_which_routes_want_a_key(api_key_api: Api) -> None:
    for path in ("/health", "/info", "/metrics", "/v1/models"):
        assert api_key_api.get(path).status_code == 200, path
    guarded = {
        "/v1/chat/completions": MESSAGES,
        "/v1/completions": PROMPT,
        "/tokenize": SHORT,
        "/invocations": SHORT,
        "/": SHORT,
    }
    for path, body in guarded.items():
        assert api_key_api.post(path, body).status_code == 401, path
        allowed = api_key_api.post(path, body, authorization=f"Bearer {API_KEY}")
        assert allowed.status_code == 200, f"{path}: {allowed.text}"


def test_021_info_has_the_launched_limits(api: Api) -> None:
    assert FLAGS["A"][1::2] == ("64", "128")
    info = api.ask_get("/info")
    assert set(info) >= INFO_KEYS
    limits = {
        "max_input_tokens": 64,
        "max_total_tokens": 128,
        "max_concurrent_requests": 128,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_client_batch_size": 4,
    }
    assert {name: info[name] for name in limits} == limits
    assert info["router"] == "text-generation-router"


def test_022_one_model_is_listed(api: Api) -> None:
    model_id = api.ask_get("/info")["model_id"]
    listed = api.ask_get("/v1/models")
    assert listed["object"] == "list"
    (entry,) = listed["data"]
    assert (entry["id"], entry["object"]) == (model_id, "model")
    assert (entry["created"], entry["owned_by"]) == (0, model_id)


def test_023_docs_and_openapi(api: Api) -> None:
    docs = api.get("/docs")
    assert docs.status_code == 200
    assert docs.headers["content-type"].startswith("text/html")
    paths = answered(api.get("/api-doc/openapi.json"))["paths"]
    missing = {path for path, methods in ROUTES.items() if not methods <= set(paths.get(path, ()))}
    assert not missing
    assert JSON["content-type"] in paths["/generate"]["post"]["requestBody"]["content"]
