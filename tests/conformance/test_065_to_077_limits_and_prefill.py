"""Statements 65 to 77 of the contract's section 11: what `/generate` refuses, lengths, prefill."""

from typing import Any

import pytest

from support.conformance import Api, answered, invalid
from support.conformance_reference import Reference, close

PROMPT = "Hello there"
# No byte of it merges with another: as many tokens as there are words.
WORD = "<count>"
OUT_OF_RANGE: list[tuple[str, float]] = [
    ("temperature", 0),
    ("temperature", -1),
    ("repetition_penalty", 0),
    ("frequency_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("top_p", 0),
    ("top_p", 1),
    ("top_p", 1.5),
    ("typical_p", 0),
    ("typical_p", 1),
    ("top_k", 0),
    ("top_k", -1),
    ("max_new_tokens", 0),
    ("truncate", 0),
    ("truncate", 65),
]
# In the order of the contract's 3.2: each is reported before all that follow it.
VIOLATIONS: list[tuple[str, dict[str, Any]]] = [
    ("`temperature`", {"temperature": 0.0}),
    ("`repetition_penalty`", {"repetition_penalty": 0.0}),
    ("`frequency_penalty`", {"frequency_penalty": 3.0}),
    ("`top_p`", {"top_p": 2.0}),
    ("`typical_p`", {"typical_p": 2.0}),
    ("`top_k`", {"top_k": 0}),
    ("`max_new_tokens`", {"max_new_tokens": 0}),
    ("`stop`", {"stop": ["a"] * 5}),
    ("`seed`", {"seed": 1, "best_of": 2, "do_sample": True}),
    ("`top_n_tokens`", {"top_n_tokens": 6}),
    ("`truncate`", {"truncate": 65}),
    ("grammar is not valid", {"grammar": {"type": "json", "value": {}}}),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_065_values_out_of_range(api: Api, name: str, value: float) -> None:
    invalid(api.try_generate(PROMPT, **{name: value}), f"`{name}`")


@pytest.mark.parametrize(
    "parameters", [{"frequency_penalty": 2.0}, {"frequency_penalty": -2.0}, {"truncate": 64}]
)
def test_066_values_just_in_range(api: Api, parameters: dict[str, Any]) -> None:
    assert api.ids(PROMPT, max_new_tokens=2, **parameters)


def test_067_an_empty_input(api: Api) -> None:
    invalid(api.try_generate("", max_new_tokens=2), "`inputs`", "empty")


def test_068_the_earlier_violation_is_reported(api: Api, long_api: Api) -> None:
    names = [name for name, _ in VIOLATIONS]
    for place, name in enumerate(names):
        for _, later in VIOLATIONS[place + 1 :]:
            response = api.try_generate(PROMPT, **{**later, **VIOLATIONS[place][1]})
            invalid(response, name)
    # The empty input stands between the best tokens and the truncation, lengths before grammars.
    invalid(api.try_generate("", top_n_tokens=6), "`top_n_tokens`")
    invalid(api.try_generate("", truncate=65), "`inputs`")
    invalid(api.try_generate(WORD * 65, max_new_tokens=100), "`max_new_tokens`")
    invalid(api.try_generate(WORD * 65, max_new_tokens=1, **VIOLATIONS[-1][1]), "`inputs`")
    # Only two values are looked at before the permit.
    with long_api.busy():
        invalid(long_api.try_generate("", best_of=3, temperature=0.0), "`best_of`")
        assert long_api.try_generate(PROMPT, temperature=0.0).status_code == 429


def test_069_too_long_an_input(api: Api) -> None:
    assert len(api.tokenize(WORD * 65)) == 65
    invalid(api.try_generate(WORD * 65, max_new_tokens=1), "`inputs`", "64", "65")
    response = api.try_generate(WORD * 64, max_new_tokens=1)
    assert response.status_code == 200


def test_070_too_many_new_tokens(api: Api) -> None:
    response = api.try_generate(WORD * 64, max_new_tokens=65)
    invalid(response, "`inputs`", "`max_new_tokens`", "128", "64", "65")
    assert len(api.ids(WORD * 64, max_new_tokens=64)) == 64


@pytest.mark.parametrize("words", [1, 40, 64])
def test_071_without_a_limit_the_context_is_filled(api: Api, words: int) -> None:
    details = api.details(WORD * words)
    assert (details["generated_tokens"], details["finish_reason"]) == (128 - words, "length")


def test_072_a_limit_beyond_the_context_is_accepted(long_api: Api) -> None:
    """Judged by its first 1,024 tokens; it gets what is left of the context."""
    response = long_api.try_generate("<bye>", max_new_tokens=100_000, details=True)
    assert answered(response)["details"]["finish_reason"] == "eos_token"
    assert response.headers["x-prompt-tokens"] == "2"
    prompt = WORD * 1023
    invalid(long_api.try_generate(prompt + WORD, max_new_tokens=100_000), "`max_new_tokens`")
    assert len(long_api.ids(prompt, max_new_tokens=100_000)) == 1024


def test_073_a_limit_above_1024_is_exact(long_api: Api) -> None:
    details = long_api.details(WORD, max_new_tokens=1500)
    assert (details["generated_tokens"], details["finish_reason"]) == (1500, "length")


def test_074_an_unknown_adapter_is_refused(api: Api) -> None:
    """A deliberate divergence: TGI answered with the base model's text."""
    invalid(api.try_generate(PROMPT, adapter_id="nope", max_new_tokens=2), "`adapter_id`", "nope")


def test_075_prefill_details(prefill_api: Api) -> None:
    body = {
        "inputs": PROMPT,
        "parameters": {"decoder_input_details": True, "max_new_tokens": 2},
    }
    response = prefill_api.post("/generate", body)
    details = answered(response)["details"]
    prefill = details["prefill"]
    assert len(prefill) == int(response.headers["x-prompt-tokens"])
    assert all(set(token) == {"id", "text", "logprob"} for token in prefill)
    tokens = prefill_api.tokenize(PROMPT)
    assert [token["id"] for token in prefill] == [token["id"] for token in tokens]
    assert [token["text"] for token in prefill] == [token["text"] for token in tokens]
    assert prefill[0]["logprob"] is None
    assert all(token["logprob"] <= 0 for token in prefill[1:])
    assert len(details["tokens"]) == 2


@pytest.mark.parametrize("parameters", [{}, {"temperature": 0.5, "repetition_penalty": 1.5}])
def test_076_prefill_logprobs_are_raw(
    prefill_api: Api, reference: Reference, parameters: dict[str, Any]
) -> None:
    prompt = "The quick brown falcon and others"
    asked = {"decoder_input_details": True, "max_new_tokens": 1, **parameters}
    prefill = prefill_api.details(prompt, **asked)["prefill"]
    wanted = reference.plain([token["id"] for token in prefill])
    assert close([token["logprob"] for token in prefill[1:]], wanted)


def test_077_prefill_details_that_are_not_enabled(api: Api) -> None:
    response = api.try_generate(PROMPT, decoder_input_details=True, max_new_tokens=2)
    details = answered(response)["details"]
    assert details["prefill"] == []
    assert len(details["tokens"]) == 2
