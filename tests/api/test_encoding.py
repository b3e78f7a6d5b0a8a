"""JSON by hand: every text and every float comes back as it was."""

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tiercel.api.encoding import (
    document_json,
    error_json,
    json_float,
    json_string,
    token_event,
    token_json,
)
from tiercel.api.generation import GeneratedToken, ScoredToken
from tiercel.errors import Overloaded, ValidationError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXTS)
def test_any_text_comes_back_and_is_one_line(text: str) -> None:
    literal = json_string(text)
    assert json.loads(literal) == text
    assert len(literal.splitlines()) == 1


def test_text_is_raw_unless_it_would_split_a_line() -> None:
    assert json_string("é😀\x7f") == '"é😀\x7f"'
    assert json_string('a"b\\\n') == '"a\\"b\\\\\\n"'
    assert json_string("\x85\u2028\u2029") == '"\\u0085\\u2028\\u2029"'


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_floats_are_the_shortest_32_bit_decimal(value: float) -> None:
    literal = json_float(value)
    assert np.float32(json.loads(literal)) == np.float32(value)
    digits = literal.lstrip("-").partition("e")[0].replace(".", "").strip("0")
    assert len(digits) <= 9
    for fewer in range(1, len(digits)):
        assert np.float32(f"{value:.{fewer}g}") != np.float32(value)


def test_floats_look_like_floats() -> None:
    assert json_float(-1.8251953125) == "-1.8251953"
    assert json_float(float(np.float32(0.1))) == "0.1"
    assert json_float(0.0) == "0.0"
    assert json_float(-0.0) == "0.0"


def test_what_json_has_no_number_for_is_null() -> None:
    for value in (math.inf, -math.inf, math.nan, None):
        assert json_float(value) == "null"


@given(TEXTS, st.booleans())
def test_a_token_is_the_contracts_object(text: str, special: bool) -> None:
    token = ScoredToken(5, text, -0.5, special)
    assert list(json.loads(token_json(token)).items()) == [
        ("id", 5),
        ("text", text),
        ("logprob", -0.5),
        ("special", special),
    ]


def test_an_event_has_the_contracts_bytes() -> None:
    token = GeneratedToken(5, " a", -0.5, False, [], " a")
    assert token_event(1, token) == (
        'data: {"index":1,"token":{"id":5,"text":" a","logprob":-0.5,"special":false},'
        '"generated_text":null,"details":null}\n\n'
    )
    ranked = GeneratedToken(5, " a", -0.5, False, [ScoredToken(5, " a", -0.5, False)], " a")
    assert json.loads(token_event(1, ranked)[6:])["top_tokens"] == [
        {"id": 5, "text": " a", "logprob": -0.5, "special": False}
    ]


def test_errors() -> None:
    assert error_json(Overloaded()) == ('{"error":"Model is overloaded","error_type":"overloaded"}')
    assert json.loads(error_json(ValidationError("`x` is \u2028 bad"))) == {
        "error": "Input validation error: `x` is \u2028 bad",
        "error_type": "validation",
    }


def test_documents_have_no_splitters_either() -> None:
    document = {"a\u2028": ["\u0085\u00e9", 1, None]}
    content = document_json(document)
    assert json.loads(content) == document
    assert content.decode() == '{"a\\u2028":["\\u0085\u00e9",1,null]}'
