"""Every field of every request has bounds, and they are in the OpenAPI description."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.edge_server import EdgeServer

_BOUNDS = {
    "integer": ({"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}),
    "number": ({"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}),
    "string": ({"maxLength", "enum", "const"},),
    "array": ({"maxItems"},),
}
PARAMETERS = {
    "stop": ["a"] * 2_049,
    "adapter_id": "a" * 1_025,
    "temperature": 1e39,
    "top_p": -1e39,
    "best_of": 2**64,
    "top_n_tokens": 2**32,
    "truncate": 2**64,
}


def unbounded(schema: Any, path: str) -> Iterator[str]:
    """The places where a value can be as large as it likes. Free objects are bounded as bodies."""
    if isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from unbounded(part, f"{path}.{index}")
    elif isinstance(schema, dict):
        for names in _BOUNDS.get(str(schema.get("type")), ()):
            if not names & set(schema):
                yield f"{path}: none of {sorted(names)}"
        for name, part in schema.items():
            if name != "default":
                yield from unbounded(part, f"{path}.{name}")


def referenced(part: Any) -> set[str]:
    if isinstance(part, list):
        return {name for inner in part for name in referenced(inner)}
    if not isinstance(part, dict):
        return set()
    own = {part["$ref"].rsplit("/", 1)[1]} if isinstance(part.get("$ref"), str) else set()
    return own | {name for inner in part.values() for name in referenced(inner)}


def request_schemas(document: dict[str, Any]) -> dict[str, Any]:
    """The schemas that request bodies refer to, directly or not."""
    schemas = document["components"]["schemas"]
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    found: set[str] = set()
    waiting = {name for each in operations for name in referenced(each.get("requestBody"))}
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= referenced(schemas[name]) - found
    return {name: schemas[name] for name in sorted(found)}


def test_every_field_has_bounds(server: EdgeServer) -> None:
    schemas = request_schemas(server.http.get("/api-doc/openapi.json").json())
    assert {"GenerateParameters", "ChatRequest", "CompletionRequest"} <= set(schemas)
    assert [place for name, schema in schemas.items() for place in unbounded(schema, name)] == []


def test_the_search_finds_what_has_none() -> None:
    assert list(unbounded({"type": "integer", "minimum": 0}, "x")) != []
    assert list(unbounded({"anyOf": [{"type": "string"}]}, "x")) != []
    assert list(unbounded({"type": "array", "items": {"type": "string", "maxLength": 1}}, "x"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_beyond_the_bounds(server: EdgeServer, name: str) -> None:
    answer = server.generate(**{name: PARAMETERS[name]})
    assert answer.status_code == 422
    assert f"parameters.{name}" in answer.text


def test_long_stop_strings(server: EdgeServer) -> None:
    assert "parameters.stop.0" in server.generate(stop=["a" * 4_097]).text
    assert server.generate(stop=["a" * 4_096], max_new_tokens=1).status_code == 200


def test_the_servers_own_limits_keep_their_sentences(server: EdgeServer) -> None:
    """TGI's words for too many stop strings (statement 48) come before the schema's bound."""
    answer = server.generate(stop=["a"] * 5)
    assert answer.json()["error_type"] == "validation"
    assert "`stop` supports up to 4 stop sequences. Given: 5" in answer.json()["error"]
