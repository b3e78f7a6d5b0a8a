"""Random JSON schemas whose texts end: strings, arrays and depth have limits."""

import random
from typing import Any

_NAMES = (
    "id",
    "name",
    "Größe",
    "zip code",
    "tags",
    'a"b',
    "x/y",
    "path\\to",
    "lat",
    "note",
    "漢字",
)
_WORDS = ("red", "green", "blue", "a b", "é", "1", "")


def random_schema(draw: random.Random) -> dict[str, Any]:
    """An object with one to five properties."""
    return _object(draw, depth=0)


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(_NAMES, draw.randint(1, 5 - depth))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _value(draw, depth + 1) for name in names},
        "required": [name for name in names if draw.random() < 0.7],
    }
    if draw.random() < 0.3:
        schema["additionalProperties"] = False
    return schema


def _value(draw: random.Random, depth: int) -> dict[str, Any]:
    makers = [_string, _integer, _number, _choice, _constant, _plain]
    if depth < 3:
        makers += [_array, _array, _any_of, _object]
    return draw.choice(makers)(draw, depth)


def _string(draw: random.Random, depth: int) -> dict[str, Any]:
    if draw.random() < 0.3:
        pattern = draw.choice(["^[a-z]{2,8}$", "[A-Z]{2}-[0-9]{3}", "^(ab|cd)+$", "\\d{1,4}"])
        return {"type": "string", "pattern": pattern, "maxLength": 12}
    if draw.random() < 0.2:
        return {"type": "string", "format": draw.choice(["date", "time", "uuid", "ipv4"])}
    return {"type": "string", "minLength": draw.randint(0, 3), "maxLength": draw.randint(3, 20)}


def _integer(draw: random.Random, depth: int) -> dict[str, Any]:
    low = draw.randint(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 5000)}


def _number(draw: random.Random, depth: int) -> dict[str, Any]:
    low = draw.randint(-50, 50)
    return {"type": "number", "minimum": low, "exclusiveMaximum": low + draw.randint(1, 100)}


def _choice(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": draw.sample([*_WORDS, 1, 2.5, None, True], draw.randint(1, 5))}


def _constant(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"const": draw.choice([*_WORDS, 0, False, ["a", 1]])}


def _plain(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"type": draw.choice(["boolean", "null", ["boolean", "null"]])}


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randint(0, 2)
    items = _value(draw, depth + 1)
    return {
        "type": "array",
        "items": items,
        "minItems": least,
        "maxItems": least + draw.randint(0, 3),
    }


def _any_of(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(draw, depth + 1) for _ in range(draw.randint(1, 3))]}
