"""JSON schemas before the library sees them: limits of size, and texts that come to an end.

Objects that list their properties are closed, as in TGI, and numbers get a length. All that comes
out is still valid, and a weak model does not go on with keys or digits for ever.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from tiercel.guidance.grammar import GrammarError

MAX_SCHEMA_CHARACTERS = 131_072
MAX_SCHEMA_DEPTH = 100  # levels of JSON; the library reads 128

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = (
    *("items", "additionalItems", "additionalProperties", "unevaluatedItems", "contains", "not"),
    *("unevaluatedProperties", "if", "then", "else", "propertyNames"),
)
_COMBINING = ("allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "not", "if")
_EXACT = ("enum", "const", "multipleOf", *_COMBINING)
_LARGEST = 2**53 - 1
_SMALLEST = 1e-9
_NARROW = 1e-3  # between bounds so close there may be no number of nine decimals
_OPENING = ("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties")


def prepare_schema(text: str) -> str:
    """The schema as the library gets it: narrowed where that is safe. Raises GrammarError.

    Whatever matches the result matches `text` too.
    """
    schema = parse_schema(text)
    nodes = list(_subschemas(schema))
    if not any(_mixes(node) for node in nodes):
        for node in nodes:
            _close(node)
            _shorten_numbers(node)
    return json.dumps(schema, ensure_ascii=False)


def parse_schema(text: str) -> dict[str, Any]:
    """The object in a JSON text within the limits. Raises GrammarError."""
    _check_length(text)
    try:
        value: object = json.loads(text)
    except RecursionError:
        raise too_deep() from None
    except ValueError as error:
        raise GrammarError(f"the schema is not JSON: {error}") from None
    _check_depth(value)
    if not isinstance(value, dict):
        raise GrammarError("the schema must be a JSON object")
    return value


def _subschemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and all schemas inside it; not what only looks like one, such as an example."""
    pending: list[object] = [schema]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict):
            continue
        yield node
        for name in _MAPS:
            held = node.get(name)
            pending += held.values() if isinstance(held, dict) else []
        for name in (*_LISTS, *_SINGLE):
            held = node.get(name)
            pending += held if isinstance(held, list) else [held]


def _mixes(node: dict[str, Any]) -> bool:
    """Whether several schemas speak about one object, so that none may call itself complete."""
    branches = node.get("allOf")
    if isinstance(branches, list) and len(branches) > 1:
        return True
    speaks = any(name in node for name in ("properties", "required", "patternProperties"))
    return speaks and any(name in node for name in _COMBINING)


def _close(node: dict[str, Any]) -> None:
    """An object that lists its properties is an object and has no others."""
    properties = node.get("properties")
    if not isinstance(properties, dict):
        return
    kind = node.setdefault("type", "object")
    required = node.get("required", [])
    listed = isinstance(required, list) and all(name in properties for name in required)
    if kind == "object" and listed and not any(name in node for name in _OPENING):
        node["additionalProperties"] = False


def _shorten_numbers(node: dict[str, Any]) -> None:
    """Integers that every JSON reader takes (RFC 7493), and nine decimals; not against the user."""
    kind = node.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if not {"integer", "number"} & set(kinds) or any(name in node for name in _EXACT):
        return
    low = max(_bound(node, "minimum", -math.inf), _bound(node, "exclusiveMinimum", -math.inf))
    high = min(_bound(node, "maximum", math.inf), _bound(node, "exclusiveMaximum", math.inf))
    if "number" in kinds and high - low >= _NARROW:
        node["multipleOf"] = _SMALLEST
    if low == -math.inf and high > -_LARGEST:
        node["minimum"] = -_LARGEST
    if high == math.inf and low < _LARGEST:
        node["maximum"] = _LARGEST


def _bound(node: dict[str, Any], name: str, default: float) -> float:
    value = node.get(name)
    return value if isinstance(value, int | float) else default


def _check_length(text: str) -> None:
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise GrammarError(
            f"the schema has {len(text)} characters; at most {MAX_SCHEMA_CHARACTERS} are allowed"
        )


def _check_depth(value: object) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_SCHEMA_DEPTH:
            raise too_deep()
        inner: list[object] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = inner


def too_deep() -> GrammarError:
    return GrammarError(f"the schema is nested too deeply: at most {MAX_SCHEMA_DEPTH} levels")
