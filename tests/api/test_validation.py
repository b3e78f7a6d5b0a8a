"""Values and their limits, in the contract's order."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel import eyas
from tiercel.api.body import parse
from tiercel.api.options import EdgeOptions
from tiercel.api.schema import GenerateParameters, GenerateRequest
from tiercel.api.validation import NO_EXTRAS, Prompt, ValidatedRequest, check_shape, validate
from tiercel.errors import ValidationError
from tiercel.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(eyas.path())
OPTIONS = EdgeOptions("m", max_input_tokens=64, max_total_tokens=128)


def _validate(
    inputs: str = "Hello there", /, options: EdgeOptions = OPTIONS, **parameters: Any
) -> ValidatedRequest:
    body = parse(json.dumps({"inputs": inputs, "parameters": parameters}).encode(), GenerateRequest)
    prompt = Prompt(body.inputs)
    return validate(prompt, body.parameters, NO_EXTRAS, options, TOKENIZER, default_seed=7)


def _complaint(inputs: str = "Hello there", /, **parameters: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        _validate(inputs, **parameters)
    assert refused.value.status == 422
    assert refused.value.error_type == "validation"
    assert str(refused.value).startswith("Input validation error: ")
    return str(refused.value)


def _text_of(tokens: int) -> str:
    text = "\n" * tokens
    count = len(TOKENIZER.encode(text))
    while count != tokens:
        text = text + "x\n" if count < tokens else text[:-1]
        count = len(TOKENIZER.encode(text))
    return text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", 1e-60),
        ("repetition_penalty", 0),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("top_p", 0),
        ("top_p", 1),
        ("top_p", 1.5),
        ("top_p", 0.99999999999),
        ("typical_p", 0),
        ("typical_p", 1),
        ("top_k", 0),
        ("top_k", -1),
        ("max_new_tokens", 0),
        ("truncate", 0),
        ("truncate", 65),
        ("top_n_tokens", 6),
        ("grammar", {"type": "json", "value": {}}),
        ("adapter_id", "nope"),
    ],
)
def test_out_of_limits(name: str, value: Any) -> None:
    assert f"`{name}`" in _complaint(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 2.0),
        ("frequency_penalty", -2.0),
        ("truncate", 64),
        ("truncate", 1),
        ("top_n_tokens", 5),
        ("top_n_tokens", 0),
        ("best_of", 1),
        ("stop", ["a", "b", "c", "d"]),
        ("stop", [""]),
    ],
)
def test_just_within_limits(name: str, value: Any) -> None:
    _validate(**{name: value})


def test_five_stop_strings_name_four_and_five() -> None:
    text = _complaint(stop=list("abcde"))
    assert "`stop`" in text and "4" in text and "5" in text


def test_empty_inputs() -> None:
    assert "`inputs`" in _complaint("")


IN_ORDER: Sequence[dict[str, Any]] = [
    {"temperature": 0.0},
    {"repetition_penalty": 0.0},
    {"frequency_penalty": 3.0},
    {"top_p": 1.0},
    {"typical_p": 1.0},
    {"top_k": 0},
    {"max_new_tokens": 0},
    {"stop": list("abcde")},
    {"seed": 1, "best_of": 2, "do_sample": True},
    {"top_n_tokens": 6},
    {"truncate": 65},
    {"max_new_tokens": 1000},
    {"grammar": {"type": "json", "value": {}}},
    {"adapter_id": "nope"},
]


@given(st.sets(st.integers(0, len(IN_ORDER) - 1), min_size=1))
def test_of_two_violations_the_earlier_one_is_reported(chosen: set[int]) -> None:
    first, *others = sorted(chosen)
    parameters: dict[str, Any] = {}
    for index in [*reversed(others), first]:
        parameters.update(IN_ORDER[index])
    name = next(iter(IN_ORDER[first]))
    if name == "max_new_tokens" and first == 10:
        parameters["max_new_tokens"] = 1000
    assert f"`{name}`" in _complaint(**parameters)


def test_the_shape_is_checked_before_anything_else() -> None:
    with pytest.raises(ValidationError, match=r"`best_of`.*streaming"):
        check_shape(GenerateParameters(best_of=0), OPTIONS, stream=True)
    with pytest.raises(ValidationError, match=r"`best_of`.*streaming"):
        check_shape(GenerateParameters(best_of=2), OPTIONS, stream=True)
    with pytest.raises(ValidationError, match=r"`best_of` must be at most 2. Given: 3"):
        check_shape(GenerateParameters(best_of=3), OPTIONS, stream=False)
    with pytest.raises(ValidationError, match=r"`best_of` is not allowed"):
        check_shape(GenerateParameters(best_of=2), EdgeOptions("m", max_best_of=1), stream=False)
    with pytest.raises(ValidationError, match=r"`decoder_input_details`.*streaming"):
        check_shape(GenerateParameters(decoder_input_details=True), OPTIONS, stream=True)


@pytest.mark.parametrize(("best_of", "sequences"), [(None, 1), (0, 1), (1, 1), (2, 2)])
def test_best_of_says_how_many_sequences(best_of: int | None, sequences: int) -> None:
    parameters = GenerateParameters(best_of=best_of, decoder_input_details=True)
    assert check_shape(parameters, OPTIONS, stream=False) == sequences


def test_best_of_needs_sampling_and_no_seed() -> None:
    assert "`best_of`" in _complaint(best_of=2)
    text = _complaint(best_of=2, do_sample=True, seed=1)
    assert "`seed`" in text and "`best_of`" in text
    for sampled in ({"temperature": 1.0}, {"top_k": 3}, {"top_p": 0.5}, {"typical_p": 0.5}):
        _validate(best_of=2, **sampled)


def test_too_many_input_tokens_name_inputs() -> None:
    text = _complaint(_text_of(65), max_new_tokens=1)
    assert "`inputs`" in text and "64" in text and "65" in text
    _validate(_text_of(64), max_new_tokens=1)


def test_too_many_tokens_together_name_both_numbers() -> None:
    text = _complaint(_text_of(29), max_new_tokens=100)
    assert "`inputs`" in text and "`max_new_tokens`" in text
    assert "128" in text and "29" in text and "100" in text
    assert _validate(_text_of(28), max_new_tokens=100).max_new_tokens == 100


def test_without_max_new_tokens_the_context_is_filled() -> None:
    request = _validate(_text_of(28))
    assert request.max_new_tokens == 100
    assert request.judged_new_tokens == 100


def test_a_request_is_judged_by_1024_new_tokens_and_gets_what_fits() -> None:
    """Contract 2.7: the same requests as TGI's are accepted, and get min(M, C - I)."""
    options = EdgeOptions("m", max_input_tokens=2047, max_total_tokens=2048)
    exactly = _validate(_text_of(10), options, max_new_tokens=1500)
    assert exactly.max_new_tokens == 1500
    assert exactly.judged_new_tokens == 1024
    assert _validate(_text_of(10), options, max_new_tokens=100_000).max_new_tokens == 2038
    assert _validate(_text_of(1024), options, max_new_tokens=1500).max_new_tokens == 1024
    with pytest.raises(ValidationError, match="`max_new_tokens`"):
        _validate(_text_of(1025), options, max_new_tokens=1500)


def test_truncate_keeps_the_last_tokens() -> None:
    text = "The quick brown fox jumps over the lazy dog"
    assert _validate(text, truncate=3).token_ids == TOKENIZER.encode(text)[-3:]
    assert _validate(_text_of(100), truncate=64).token_ids == TOKENIZER.encode(_text_of(100))[-64:]


@pytest.mark.parametrize(
    ("parameters", "sampled"),
    [
        ({}, False),
        ({"temperature": 1.0}, False),
        ({"temperature": 0.5}, True),
        ({"top_k": 1}, True),
        ({"top_p": 0.9}, True),
        ({"typical_p": 0.9}, True),
        ({"do_sample": True}, True),
        ({"seed": 3}, False),
        ({"repetition_penalty": 2.0}, False),
    ],
)
def test_when_a_request_is_sampled(parameters: dict[str, Any], sampled: bool) -> None:
    assert _validate(**parameters).sampling.do_sample is sampled


def test_a_repetition_penalty_leaves_logits_finite() -> None:
    """1e-45 is a legal float32, and a logit of 10 divided by it is none."""
    for asked, kept in ((1e-45, 1e-30), (3e38, 1e30), (1.2, 1.2), (1e-6, 1e-6)):
        assert _validate(repetition_penalty=asked).sampling.repetition_penalty == pytest.approx(
            kept, rel=1e-6
        )


def test_the_given_seed_is_used_and_else_the_drawn_one() -> None:
    assert _validate(seed=2**64 - 1).sampling.seed == 2**64 - 1
    assert _validate(seed=0).sampling.seed == 0
    assert _validate().sampling.seed == 7


def test_decoder_input_details_imply_details_but_need_the_servers_consent() -> None:
    refused = _validate(decoder_input_details=True)
    assert refused.details and not refused.prompt_logprobs
    willing = EdgeOptions("m", enable_prefill_logprobs=True)
    assert _validate("x", willing, decoder_input_details=True).prompt_logprobs
    assert not _validate("x", willing, details=True).prompt_logprobs
