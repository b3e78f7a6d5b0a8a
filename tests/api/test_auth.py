"""Keys and route classes: who is let in, and what a refusal looks like."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Mount, Route

from support.edge_server import EdgeServer, ids
from support.raw_http import ask, get, post
from tiercel.api.auth import (
    ROUTES,
    Access,
    ApiKey,
    KeyRing,
    RouteClasses,
    load_keys,
    route_classes,
    tenant_of,
)
from tiercel.errors import ConfigError

PUBLIC_GETS = ("/", "/health", "/ping", "/info", "/metrics", "/api-doc/openapi.json")
DATA_POSTS = ("/", "/generate", "/generate_stream", "/tokenize")
BODY = {"inputs": "Hello", "parameters": {"max_new_tokens": 1}}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}


@pytest.fixture(scope="module")
def keyed() -> Iterator[EdgeServer]:
    keys = KeyRing(load_keys(["Secret1", "Secret2"], None))
    with EdgeServer(keys=keys) as server:
        yield server


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeServer]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("team:Data1\nops:Admin1:admin\n")
    with EdgeServer(keys=KeyRing(load_keys([], file)), protect_metrics=True) as server:
        yield server


def test_every_route_has_a_class(keyed: EdgeServer) -> None:
    """A new route has to be added to the table, with a decision."""
    registered = set()
    for route in keyed.app.routes:
        assert not isinstance(route, Mount), "mounts hide routes from this test"
        assert isinstance(route, Route), f"{route} is no plain route"
        for method in (route.methods or set()) - {"HEAD"}:
            registered.add(f"{method} {route.path}")
    assert registered - set(ROUTES) == set()
    assert set(ROUTES) - registered == set(), "the table names routes that are not there"


def test_what_takes_a_prompt_is_never_public() -> None:
    assert all(
        access is Access.DATA for route, access in ROUTES.items() if not route.startswith("GET ")
    )


@pytest.mark.parametrize("path", PUBLIC_GETS)
def test_public_routes_need_no_key(keyed: EdgeServer, path: str) -> None:
    assert keyed.http.get(path).status_code == 200
    assert keyed.http.head(path).status_code == 200


@pytest.mark.parametrize("path", DATA_POSTS)
def test_data_routes_need_a_key(keyed: EdgeServer, path: str) -> None:
    answer = keyed.http.post(path, json=BODY)
    assert answer.status_code == 401
    assert answer.content == b""
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["access-control-allow-origin"] == "*"
    for key in ("Secret1", "Secret2"):
        assert keyed.http.post(path, json=BODY, headers=bearer(key)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/anything"])
def test_openai_routes_refuse_in_their_own_shape(keyed: EdgeServer, path: str) -> None:
    answer = keyed.http.post(path, json={})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert error["type"] == "authentication_error"
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Secret1",
        "Bearer",
        "Bearer ",
        "Bearer secret1",
        "Bearer SECRET1",
        "Bearer Secret",
        "Bearer Secret11",
        "Bearer Secret1 Secret1",
        "Bearer Secret1,Secret2",
        "Basic Secret1",
        "BearerSecret1",
        "Bearer\tSecret1",
        "Bearer \xe9\xff",
    ],
)
def test_wrong_credentials(keyed: EdgeServer, value: str) -> None:
    answer = ask(keyed.port, get("/generate", f"Authorization: {value}"))
    assert (answer.status, answer.body) == (401, b"")


@pytest.mark.parametrize("value", ["Bearer Secret1", "bearer Secret1", "BEARER   Secret2 "])
def test_the_scheme_is_case_insensitive(keyed: EdgeServer, value: str) -> None:
    request = post("/generate", json.dumps(BODY).encode(), f"Authorization: {value}")
    assert ask(keyed.port, request).status == 200


@pytest.mark.parametrize("second", ["Bearer Wrong", "Bearer Secret2"])
def test_two_different_authorization_headers_are_none(keyed: EdgeServer, second: str) -> None:
    headers = [("authorization", "Bearer Secret1"), ("authorization", second)]
    assert keyed.http.post("/generate", json=BODY, headers=headers).status_code == 401


def test_an_authorization_header_may_be_said_twice(keyed: EdgeServer) -> None:
    headers = [("authorization", "Bearer Secret1"), ("authorization", "Bearer Secret1")]
    assert keyed.http.post("/generate", json=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/Health", "/health/", "//health", "/health/../generate", "/%67enerate", "/admin"],
)
def test_what_is_not_in_the_table_needs_a_key(keyed: EdgeServer, path: str) -> None:
    """Whether it exists is not told without one."""
    assert ask(keyed.port, get(path)).status == 401
    assert ask(keyed.port, get(path, "Authorization: Bearer Secret1")).status in (404, 405)


def test_a_wrong_method_needs_a_key(keyed: EdgeServer) -> None:
    assert keyed.http.post("/health").status_code == 401
    answer = keyed.http.post("/health", headers=bearer("Secret1"))
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET,HEAD")


def test_preflights_need_no_key(keyed: EdgeServer) -> None:
    assert keyed.http.options("/generate").status_code == 200


@pytest.mark.parametrize("host", ["a/?x=", "x/health", "127.0.0.1/health?", "h#/health", "/health"])
def test_host_has_no_say(keyed: EdgeServer, host: str) -> None:
    """Starlette once rebuilt the path from it (CVE-2026-48710)."""
    assert keyed.http.get("/generate", headers={"host": host}).status_code == 401
    assert keyed.http.get("/health", headers={"host": host}).status_code == 200


def test_an_escaped_path_has_the_class_of_its_route() -> None:
    classes = route_classes(protect_metrics=False)
    assert classes.of("GET", "/v1/models/org/name") is Access.PUBLIC
    assert classes.of("HEAD", "/health") is Access.PUBLIC
    assert classes.of("POST", "/v1/models/org/name") is Access.DATA
    assert classes.of("GET", "/generate") is Access.DATA
    assert classes.of("DELETE", "/health") is Access.DATA


def test_a_platforms_probe_is_public() -> None:
    classes = route_classes(protect_metrics=False, public=["/probe"])
    assert classes.of("GET", "/probe") is Access.PUBLIC
    assert classes.of("POST", "/probe") is Access.DATA


def test_parameters_in_paths_do_not_reach_over_slashes() -> None:
    classes = RouteClasses({"GET /open/{name}": Access.PUBLIC})
    assert classes.of("GET", "/open/x") is Access.PUBLIC
    assert classes.of("GET", "/open/x/secret") is Access.DATA


@pytest.mark.parametrize("path", ["/metrics", "/info"])
def test_protected_metrics_need_an_admin_key(protected: EdgeServer, path: str) -> None:
    statuses = [
        protected.http.get(path, headers=headers).status_code
        for headers in ({}, bearer("Wrong"), bearer("Data1"), bearer("Admin1"))
    ]
    assert statuses == [401, 401, 403, 200]
    assert protected.http.get("/health").status_code == 200


def test_an_admin_key_may_generate(protected: EdgeServer) -> None:
    answer = protected.http.post("/generate", json=BODY, headers=bearer("Admin1"))
    assert answer.status_code == 200


def test_tenants_have_salts_of_their_own(keyed: EdgeServer) -> None:
    """The prefix cache never tells one key what another has asked."""
    keyed.engine.requests.clear()
    for key in ("Secret1", "Secret2", "Secret1"):
        keyed.http.post("/generate", json=BODY, headers=bearer(key))
    salts = [request.cache_salt for request in keyed.engine.requests]
    assert salts[0] == salts[2] != salts[1]
    assert all(len(salt) == 32 for salt in salts)
    assert keyed.engine.requests[0].token_ids == ids("Hello")


def test_without_keys_everybody_may_call(server: EdgeServer) -> None:
    assert server.generate(max_new_tokens=1).status_code == 200
    assert server.engine.requests[-1].cache_salt == b""


def test_tenant_of() -> None:
    assert tenant_of({}) == b""
    assert tenant_of({"state": {"tenant": b"x"}}) == b"x"


def test_keys_are_kept_as_digests_only() -> None:
    (key,) = load_keys(["PlainText1"], None)
    assert "PlainText1" not in repr(key)
    assert "PlainText1" not in repr(vars(KeyRing([key])))


def test_all_keys_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """No early exit: the time does not tell which key it was."""
    ring = KeyRing(load_keys(["a", "b", "c"], None))
    compared: list[bytes] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr("tiercel.api.auth.hmac.compare_digest", compare)
    assert ring.find(b"Bearer a") is not None
    assert len(compared) == 3


def test_a_keys_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# keys of the team\n\n  plain1  \nanna:key2\nops : key3 : admin\n")
    keys = load_keys(["flag1"], file)
    assert [(key.name, key.admin) for key in keys] == [
        ("key 1", False), ("line 3", False), ("anna", False), ("ops", True),
    ]  # fmt: skip
    ring = KeyRing(keys)
    found = [ring.find(f"Bearer {text}".encode()) for text in ("flag1", "plain1", "key2", "key3")]
    assert found == keys


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "holds no key"),
        ("# nothing\n\n", "holds no key"),
        ("a:Planted7:root\n", "line 1: a line is"),
        ("a:Planted7:admin:more\n", "line 1: a line is"),
        ("ok1\nname:\n", "line 2: a key has 1 to 512"),
        ("Planted7 x\n", "printable ASCII"),
        ("Plantéd7\n", "printable ASCII"),
        ("Planted7\nx:Planted7\n", "given twice"),
        ("x" * 513, "1 to 512"),
        ("x" * 1_100_000, "larger than 1048576 bytes"),
    ],
)
def test_bad_keys_files(tmp_path: Path, content: str, what: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match=what) as refused:
        load_keys([], file)
    assert "Planted7" not in str(refused.value).replace(str(tmp_path), "")


def test_keys_files_that_cannot_be_trusted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_keys([], tmp_path / "none")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_keys([], tmp_path)
    file = tmp_path / "keys"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_keys([], file)
    file.write_text("key1")
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod o-w"):
        load_keys([], file)


@pytest.mark.parametrize("keys", [[""], ["a b"], ["a", "a"], ["a\n"]])
def test_bad_keys_from_the_command_line(keys: list[str]) -> None:
    with pytest.raises(ConfigError):
        load_keys(keys, None)


def test_protected_metrics_without_an_admin_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs an admin key"):
        load_keys(["a"], None, need_admin=True)
    file = tmp_path / "keys"
    file.write_text("ops:b:admin")
    assert len(load_keys(["a"], file, need_admin=True)) == 2


def test_an_empty_ring_lets_everybody_in() -> None:
    assert KeyRing().find(b"Bearer x") is None
    assert not KeyRing()
    ring = KeyRing([ApiKey("x", b"0" * 32)])
    ring.replace([])
    assert not ring


def test_a_platforms_own_paths() -> None:
    """Vertex AI names them: its probe is public, its predictions are not."""
    keys = KeyRing(load_keys(["Secret1"], None))
    with EdgeServer(keys=keys, health_route="/probe", predict_route="/predict") as server:
        assert server.http.get("/probe").status_code == 200
        assert server.post("/predict", {"instances": []}).status_code == 401
