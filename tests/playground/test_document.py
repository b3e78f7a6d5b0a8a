"""The page as a document: self-contained, fenced in by its headers, open to everybody."""

import base64
import hashlib
import re

import pytest

from support.edge_server import EdgeServer
from tiercel.api.auth import ApiKey, KeyRing


@pytest.fixture
def policy(edge: EdgeServer) -> dict[str, str]:
    """Directives of the content-security policy."""
    header = edge.http.get("/playground").headers["content-security-policy"]
    return dict(part.strip().partition(" ")[::2] for part in header.split(";"))


def content(edge: EdgeServer, tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", edge.http.get("/playground").text, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_policy_allows_nothing_but_the_page_itself(policy: dict[str, str]) -> None:
    hashes = {name: policy.pop(name) for name in ("script-src", "style-src")}
    for source in hashes.values():
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", source)
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


@pytest.mark.parametrize(("tag", "directive"), [("script", "script-src"), ("style", "style-src")])
def test_the_hashes_are_those_of_the_content(
    edge: EdgeServer, policy: dict[str, str], tag: str, directive: str
) -> None:
    digest = hashlib.sha256(content(edge, tag).encode()).digest()
    assert policy[directive] == f"'sha256-{base64.b64encode(digest).decode()}'"


def test_the_document_refers_to_nothing_outside(edge: EdgeServer) -> None:
    html = edge.http.get("/playground").text
    addresses = set(re.findall(r"https?://[^\s'\"<>]+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a language, never fetched
    assert re.findall(r"@import|\burl\(", html) == []
    assert re.findall(r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write)", html) == []
    assert re.findall(r"<[^>]+\s(?:on\w+|style)=", html) == []
    assert re.findall(r"\s(?:src|href)=\"(?!data:)", html) == []


def test_the_other_headers(edge: EdgeServer) -> None:
    headers = edge.http.get("/playground").headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"


def test_a_browser_that_has_the_page_gets_304(edge: EdgeServer) -> None:
    first = edge.http.get("/playground")
    again = edge.http.get("/playground", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]


def test_head_and_other_methods(edge: EdgeServer) -> None:
    assert edge.http.head("/playground").status_code == 200
    assert edge.http.post("/playground").status_code == 405


def test_the_page_tells_the_limit_on_alternatives() -> None:
    with EdgeServer(max_top_n_tokens=3) as server:
        assert 'data-top-tokens="3"' in server.http.get("/playground").text


def test_the_page_can_be_left_out() -> None:
    with EdgeServer(playground=False) as server:
        assert server.http.get("/playground").status_code == 404


def test_the_page_needs_no_key_where_the_api_does() -> None:
    ring = KeyRing([ApiKey("test", hashlib.sha256(b"secret").digest())])
    with EdgeServer(keys=ring) as server:
        assert server.http.get("/playground").status_code == 200
        assert server.generate().status_code == 401
