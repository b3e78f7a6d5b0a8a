"""/docs and the OpenAPI description: complete, self-contained, and off when asked."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from support.edge_server import EdgeServer
from tiercel.api.docs import render

DESCRIPTION = "/api-doc/openapi.json"
ROUTES = {
    "/": {"get", "post"},
    "/generate": {"post"},
    "/generate_stream": {"post"},
    "/v1/chat/completions": {"post"},
    "/v1/completions": {"post"},
    "/invocations": {"post"},
    "/vertex": {"post"},
    "/tokenize": {"post"},
    "/info": {"get"},
    "/v1/models": {"get"},
    "/health": {"get"},
    "/ping": {"get"},
    "/metrics": {"get"},
    "/v2/models/{name}/infer": {"post"},
    "/v2/models/{name}/versions/{version}/generate_stream": {"post"},
}


@pytest.fixture(scope="module")
def document(module_server: EdgeServer) -> Any:
    return module_server.http.get(DESCRIPTION).json()


def _references(part: object) -> set[str]:
    if isinstance(part, dict):
        found = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return found.union(*map(_references, part.values()))
    if isinstance(part, list):
        return set().union(*map(_references, part))
    return set()


def test_all_routes_are_described(document: Any) -> None:
    paths = document["paths"]
    for path, methods in ROUTES.items():
        assert methods <= set(paths[path]), path


def test_no_reference_hangs(document: Any) -> None:
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert _references(document) <= known
    assert not any(key.startswith("x-") for path in document["paths"].values() for key in path)


def test_operations_are_complete(document: Any) -> None:
    identifiers = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            identifiers.append(operation["operationId"])
            assert operation["summary"] and operation["tags"], where
            assert "200" in operation["responses"], where
            named = {each["name"] for each in operation.get("parameters", ())}
            assert named == set(re.findall(r"\{(\w+)\}", path)), where
            assert all(each["description"] for each in operation["responses"].values()), where
            assert ("requestBody" in operation) == (method == "post"), where
            if method == "post":
                needed = {"400", "401", "413", "415", "422", "503"}
                assert needed <= set(operation["responses"]), where
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("body", ["{", '{"inputs":1}', '{"inputs":""}'])
def test_refusals_are_as_described(server: EdgeServer, document: Any, body: str) -> None:
    headers = {"content-type": "application/json"}
    for path, methods in document["paths"].items():
        if "post" in methods:
            url = path.replace("{name}", "m").replace("{version}", "1")
            response = server.http.post(url, content=body, headers=headers)
            described = methods["post"]["responses"][str(response.status_code)]
            kind = response.headers["content-type"].partition(";")[0]
            assert kind in described["content"], (path, response.status_code, response.text)


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.links += [str(given[name]) for name in ("href", "src") if name in given]
        self.ids |= {str(given["id"])} if "id" in given else set()
        assert "style" not in given and not any(name.startswith("on") for name in given)


def test_the_page_needs_nothing_else(server: EdgeServer, document: Any) -> None:
    response = server.http.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    style = response.text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    page = _Page(response.text)
    assert not {"script", "img", "iframe", "link"} & set(page.tags)
    assert {link for link in page.links if not link.startswith("#")} == {DESCRIPTION}
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    for path in document["paths"]:
        assert f"<code>{path}</code>" in response.text
    assert server.http.head("/docs").status_code == 200


def test_what_is_described_cannot_become_markup() -> None:
    document = {
        "info": {"title": "<b>", "version": "1", "description": "<script>"},
        "components": {"schemas": {"<i>": {"title": "<u>"}}},
        "paths": {"/<p>": {"get": {"summary": "<s>", "responses": {}}}},
    }
    tags = set(_Page(render(document)).tags)
    assert not tags & {"script", "i", "u", "s"}


def test_docs_can_be_turned_off() -> None:
    with EdgeServer(docs=False) as server:
        assert server.http.get("/docs").status_code == 404
        assert server.http.get(DESCRIPTION).status_code == 404
        assert server.http.get("/health").status_code == 200
