"""Schemas before the library: limits, and which objects are closed."""

import json
from typing import Any

import jsonschema
import pytest

from tiercel.guidance.grammar import GrammarError
from tiercel.guidance.schema import MAX_SCHEMA_CHARACTERS, parse_schema, prepare_schema

TEXT = {"type": "string"}


def prepared(schema: Any) -> Any:
    return json.loads(prepare_schema(json.dumps(schema)))


def test_an_object_that_lists_its_properties_is_closed() -> None:
    inner = {"properties": {"b": TEXT}}
    schema = {"properties": {"a": TEXT, "c": {"items": inner}}, "$defs": {"d": inner}}
    closed = prepared(schema)
    for node in (closed, closed["properties"]["c"]["items"], closed["$defs"]["d"]):
        assert node["type"] == "object"
        assert node["additionalProperties"] is False
    assert list(closed["properties"]) == ["a", "c"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": {"a": TEXT}, "additionalProperties": TEXT},
        {"properties": {"a": TEXT}, "additionalProperties": True},
        {"properties": {"a": TEXT}, "patternProperties": {"^x": TEXT}},
        {"properties": {"a": TEXT}, "minProperties": 2},
        {"properties": {"a": TEXT}, "required": ["a", "b"]},
        {"allOf": [{"properties": {"a": TEXT}}, {"properties": {"b": TEXT}}]},
        {"properties": {"a": TEXT}, "anyOf": [{"properties": {"b": TEXT}, "required": ["b"]}]},
        {"$ref": "#/$defs/x", "properties": {"a": TEXT}, "$defs": {"x": {"properties": {}}}},
    ],
)
def test_an_object_that_may_have_more_stays_open(schema: dict[str, Any]) -> None:
    before = json.dumps(schema)
    after = prepared(schema)
    for node in (after, *after.get("allOf", []), *after.get("anyOf", [])):
        assert node.get("additionalProperties") is not False
    assert json.dumps(schema) == before


def test_what_is_no_schema_is_left_alone() -> None:
    example = {"properties": {"a": 1}}
    schema = {"properties": {"properties": TEXT}, "examples": [example], "const": example}
    after = prepared(schema)
    assert after["examples"] == [example]
    assert after["const"] == example
    assert after["properties"]["properties"] == TEXT


def test_whatever_matches_the_prepared_schema_matches_the_original() -> None:
    schema = {"properties": {"a": TEXT, "b": {"type": ["object", "null"], "properties": {}}}}
    after = prepared(schema)
    for value in ({}, {"a": "x"}, {"a": "x", "b": {}}, {"b": None}, {"c": 1}, 3, {"b": {"z": 1}}):
        if jsonschema.Draft202012Validator(after).is_valid(value):
            assert jsonschema.Draft202012Validator(schema).is_valid(value)
    assert not jsonschema.Draft202012Validator(after).is_valid({"c": 1})


@pytest.mark.parametrize(
    ("node", "added"),
    [
        ({"type": "integer"}, {"minimum": -(2**53) + 1, "maximum": 2**53 - 1}),
        ({"type": "integer", "minimum": 3}, {"maximum": 2**53 - 1}),
        ({"type": "integer", "minimum": 3, "exclusiveMaximum": 9}, {}),
        ({"type": "number", "minimum": 0, "maximum": 1}, {"multipleOf": 1e-9}),
        ({"type": "number", "minimum": 0, "maximum": 1e-10}, {}),
        ({"type": ["number", "null"], "minimum": 10**20}, {"multipleOf": 1e-9}),
        ({"type": "number", "multipleOf": 0.5, "maximum": 3}, {}),
        ({"type": "number", "enum": [1e30]}, {}),
        ({"type": "string"}, {}),
        ({}, {}),
    ],
)
def test_numbers_get_a_length(node: dict[str, Any], added: dict[str, Any]) -> None:
    assert prepared({"items": node})["items"] == node | added


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ("true", "must be a JSON object"),
        ('{"a":' * 200 + "1" + "}" * 200, "too deeply: at most 100 levels"),
        ("[" * 60_000, "too deeply"),
        ('"' + "x" * MAX_SCHEMA_CHARACTERS + '"', f"at most {MAX_SCHEMA_CHARACTERS}"),
    ],
)
def test_texts_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        parse_schema(text)
