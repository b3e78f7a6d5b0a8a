"""Browsers: preflights, allowed origins, and the headers that scripts may send and read."""

from collections.abc import Iterator

import pytest

from support.edge_server import EdgeServer

VARY = "origin, access-control-request-method, access-control-request-headers"


@pytest.fixture(scope="module")
def choosy() -> Iterator[EdgeServer]:
    origins = ("https://a.example", "https://b.example:8443")
    with EdgeServer(cors_allow_origin=origins) as server:
        yield server


@pytest.mark.parametrize("path", ["/", "/generate", "/health", "/v1/chat/completions", "/nothing"])
@pytest.mark.parametrize("asked", ["authorization", "x-something-else", None])
def test_preflights(server: EdgeServer, path: str, asked: str | None) -> None:
    headers = {"origin": "https://any.example", "access-control-request-method": "POST"}
    if asked is not None:
        headers["access-control-request-headers"] = asked
    answer = server.http.options(path, headers=headers)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-methods"] == "GET,POST"
    allowed = answer.headers["access-control-allow-headers"].split(",")
    assert {"authorization", "content-type", "traceparent", "x-request-id"} <= set(allowed)
    assert int(answer.headers["access-control-max-age"]) > 0
    assert answer.headers["vary"] == VARY


def test_openais_own_client_may_call_from_a_browser(server: EdgeServer) -> None:
    """What its preflight asks for; a browser sends nothing if one of them is missing."""
    sent = ("arch", "lang", "os", "package-version", "retry-count", "runtime", "timeout")
    asked = {"authorization", "content-type", *(f"x-stainless-{name}" for name in sent)}
    answer = server.http.options("/v1/chat/completions", headers={"origin": "https://any.example"})
    assert asked <= set(answer.headers["access-control-allow-headers"].split(","))
    answer = server.http.get("/health")
    assert "retry-after" in answer.headers["access-control-expose-headers"].split(",")


def test_options_without_an_origin(server: EdgeServer) -> None:
    assert server.http.options("/generate").status_code == 200


def test_answers_can_be_read_by_scripts(server: EdgeServer) -> None:
    answers = [
        server.generate(max_new_tokens=1),
        server.generate(max_new_tokens=0),
        server.post("/generate", {}),
        server.http.get("/nothing"),
        server.http.get("/generate"),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 422, 404, 405]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["vary"] == VARY
    exposed = answers[0].headers["access-control-expose-headers"].split(",")
    assert {name for name in answers[0].headers if name.startswith("x-")} <= set(exposed)


def test_streams_can_be_read_by_scripts(server: EdgeServer) -> None:
    with server.stream(max_new_tokens=1) as answer:
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", ["https://a.example", "https://b.example:8443"])
def test_an_origin_of_the_list(choosy: EdgeServer, origin: str) -> None:
    for answer in (
        choosy.http.get("/health", headers={"origin": origin}),
        choosy.http.options("/generate", headers={"origin": origin}),
    ):
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert "origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://c.example",
        "http://a.example",
        "https://a.example:8443",
        "https://a.example.evil",
        "https://evil-a.example",
        "https://A.example",
        "null",
        "*",
        "",
        None,
    ],
)
def test_any_other_origin(choosy: EdgeServer, origin: str | None) -> None:
    headers = {} if origin is None else {"origin": origin}
    for answer in (
        choosy.http.get("/health", headers=headers),
        choosy.http.options("/generate", headers=headers),
    ):
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-expose-headers" not in answer.headers
        assert "origin" in answer.headers["vary"]


def test_credentials_are_never_allowed(server: EdgeServer, choosy: EdgeServer) -> None:
    for edge in (server, choosy):
        answer = edge.http.options("/", headers={"origin": "https://a.example"})
        assert "access-control-allow-credentials" not in answer.headers
