"""Bodies: what each field can hold, and what is refused in plain text."""

import json

import pytest

from tiercel.api.body import MAX_PARTS, BodyRefused, is_json, parse
from tiercel.api.schema import GenerateRequest, LegacyGenerateRequest

JSON_TYPES = (
    "application/json",
    "application/json; charset=utf-8",
    "Application/JSON",
    "application/problem+json",
)


def _refusal(body: bytes | dict[str, object]) -> tuple[int, str]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BodyRefused) as refused:
        parse(raw, GenerateRequest)
    return refused.value.status, str(refused.value)


def _with(**parameters: object) -> dict[str, object]:
    return {"inputs": "x", "parameters": parameters}


@pytest.mark.parametrize("content_type", JSON_TYPES)
def test_json_content_types(content_type: str) -> None:
    assert is_json(content_type)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/jsonx", "json", "x/json"])
def test_other_content_types(content_type: str) -> None:
    assert not is_json(content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"inputs": "x"',
        b'{"inputs": "x",}',
        b'{"inputs": "x"} {}',
        b'{"inputs": NaN}',
        b'{"inputs": "x", "parameters": {"temperature": NaN}}',
        b'{"inputs": "x", "parameters": {"temperature": Infinity}}',
        b'{"inputs": "x", "parameters": {"temperature": 1e400}}',
        b'{"inputs": "x", "parameters": {"seed": ' + b"9" * 5000 + b"}}",
        b'{"inputs": "\xff"}',
        b'{"inputs": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"inputs": ' + b"[" * 64 + b"]" * 64 + b"}",
        b'{"inputs": "x", "a": ' + b'{"b":[' * 32 + b"]}" * 32 + b"}",
        b'{"inputs": "x", "a": [' + b"[]," * 50_000 + b"[",
        b'{"inputs": "x", "a": ' + b"]" * 100 + b"}",
        b'{"inputs": "x", "a": "\\ud800"',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_not_json_answers_400(body: bytes) -> None:
    status, text = _refusal(body)
    assert status == 400
    assert text.startswith("Failed to parse the request body as JSON: ")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": ["x"]}, "inputs"),
        ({"inputs": "x", "parameters": None}, "parameters"),
        ({"inputs": "x", "parameters": []}, "parameters"),
        *((_with(max_new_tokens=value), "parameters.max_new_tokens") for value in (-1, 1.5, "5")),
        ({"inputs": "x", "a": [[]] * 50_000}, "."),
        ({"inputs": "x", "a": {str(n): n for n in range(50_000)}}, "."),
        (_with(max_new_tokens=1.0), "parameters.max_new_tokens"),
        (_with(max_new_tokens=True), "parameters.max_new_tokens"),
        (_with(max_new_tokens=2**32), "parameters.max_new_tokens"),
        (_with(top_k=2**31), "parameters.top_k"),
        (_with(top_k=1.5), "parameters.top_k"),
        (_with(seed=-1), "parameters.seed"),
        (_with(seed=2**64), "parameters.seed"),
        (_with(truncate=-1), "parameters.truncate"),
        (_with(top_n_tokens=-1), "parameters.top_n_tokens"),
        (_with(best_of=-1), "parameters.best_of"),
        (_with(temperature="1"), "parameters.temperature"),
        (_with(temperature=True), "parameters.temperature"),
        (_with(temperature=1e39), "parameters.temperature"),
        (_with(do_sample=1), "parameters.do_sample"),
        (_with(do_sample="true"), "parameters.do_sample"),
        (_with(stop="x"), "parameters.stop"),
        (_with(stop=["x", 1]), "parameters.stop.1"),
        (_with(grammar="x"), "parameters.grammar"),
        (_with(adapter_id=1), "parameters.adapter_id"),
        *(
            (_with(**{name: None}), f"parameters.{name}")
            for name in ("stop", "details", "do_sample", "watermark", "decoder_input_details")
        ),
    ],
)
def test_wrong_types_answer_422_and_name_the_field(body: dict[str, object], path: str) -> None:
    status, text = _refusal(body)
    assert status == 422
    assert text.startswith(f"Failed to deserialize the JSON body into the target type: {path}: ")
    assert "instance of" not in text  # our class's name is nobody's business


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (rb'{"inputs": "\ud800"}', "inputs"),
        (rb'{"inputs": "\udc00 and more text"}', "inputs"),
        (rb'{"inputs": "\ud800\ud800"}', "inputs"),
        (rb'{"inputs": "x", "parameters": {"stop": ["a", "b\uDFFF"]}}', "parameters.stop.1"),
        (rb'{"inputs": "x", "\ud800": 1}', "."),
    ],
)
def test_half_characters_answer_422_and_name_the_field(body: bytes, path: str) -> None:
    status, text = _refusal(body)
    assert (status, text.split(": ")[1]) == (422, path)


def test_brackets_in_texts_are_no_nesting() -> None:
    text = "[{" * 200 + '\\"[[[' * 200 + "]" * 500
    body = json.dumps({"inputs": text, "a": ["[" * 300] * 3, "b": "\\"}).encode()
    assert parse(body, GenerateRequest).inputs == text


def test_the_deepest_nesting_that_is_read() -> None:
    body = b'{"inputs": "x", "a": ' + b"[" * 63 + b"]" * 63 + b"}"
    assert parse(body, GenerateRequest).inputs == "x"
    wide = b'{"inputs": "x", "a": [' + b"[]," * (MAX_PARTS - 4) + b"0]}"
    assert parse(wide, GenerateRequest).inputs == "x"


def test_a_long_key_is_not_repeated() -> None:
    body = b'{"inputs": "x", "' + b"k" * 100_000 + rb'": "\ud800"}'
    assert len(_refusal(body)[1]) < 400


def test_a_body_that_is_no_object_answers_422() -> None:
    assert _refusal(b"[]")[0] == 422
    assert _refusal(b"null")[0] == 422


def test_the_value_that_was_refused_is_not_repeated() -> None:
    _, text = _refusal(_with(max_new_tokens="my secret"))
    assert "secret" not in text


def test_a_long_kind_of_grammar_is_not_repeated() -> None:
    """The library's sentence quotes it; it would go to the log as well."""
    status, text = _refusal(_with(grammar={"type": "a" * 9_000}))
    assert status == 422
    assert "parameters.grammar: Input tag 'aaa" in text
    assert len(text) < 500


def test_null_means_absent_where_the_contract_says_so() -> None:
    names = (
        "best_of", "temperature", "repetition_penalty", "frequency_penalty", "top_k", "top_p",
        "typical_p", "max_new_tokens", "return_full_text", "truncate", "seed", "top_n_tokens",
        "grammar", "adapter_id",
    )  # fmt: skip
    body = json.dumps(_with(**dict.fromkeys(names))).encode()
    parameters = parse(body, GenerateRequest).parameters
    assert all(getattr(parameters, name) is None for name in names)


def test_unknown_fields_are_ignored() -> None:
    body = json.dumps({**_with(stop_sequences=["x"], nonsense=1), "model": "m", "x": {}}).encode()
    assert parse(body, GenerateRequest).parameters.stop == []


def test_the_widest_values_fit() -> None:
    body = json.dumps(_with(seed=2**64 - 1, max_new_tokens=2**32 - 1, top_k=-(2**31))).encode()
    parameters = parse(body, GenerateRequest).parameters
    assert parameters.seed == 2**64 - 1
    assert parameters.max_new_tokens == 2**32 - 1
    assert parameters.top_k == -(2**31)


def test_floats_are_32_bit_and_integers_are_floats() -> None:
    parameters = parse(json.dumps(_with(temperature=0.1, top_p=1)).encode(), GenerateRequest)
    assert parameters.parameters.temperature == 0.10000000149011612
    assert parameters.parameters.top_p == 1.0


def test_the_default_trap() -> None:
    """Without parameters a request is sampled, with empty ones it is greedy (contract 1.4)."""
    assert parse(b'{"inputs": "x"}', GenerateRequest).parameters.do_sample
    assert not parse(b'{"inputs": "x", "parameters": {}}', GenerateRequest).parameters.do_sample


def test_stream_belongs_to_the_legacy_shape_only() -> None:
    body = b'{"inputs": "x", "stream": true}'
    assert parse(body, LegacyGenerateRequest).stream
    assert "stream" not in GenerateRequest.model_fields
