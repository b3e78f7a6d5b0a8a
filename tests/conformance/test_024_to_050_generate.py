"""Statements 24 to 50 of the contract's section 11: what `/generate` and `/` answer."""

import re

import pytest

from support.conformance import Api, answered, invalid, near
from support.conformance_model import COUNTED, EMOJI, EOS, EOS_ID

PROMPT = "Hello there"
INTEGER_HEADERS = (
    "x-total-time",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-prompt-tokens",
    "x-generated-tokens",
    "x-compute-characters",
)
U64 = 2**64


def test_024_without_parameters_it_is_sampled(api: Api) -> None:
    texts = {api.ask("/generate", {"inputs": PROMPT})["generated_text"] for _ in range(3)}
    assert len(texts) > 1
    greedy = [api.generate(PROMPT, details=True) for _ in range(3)]
    assert near(greedy[0], greedy[1])
    assert near(greedy[0], greedy[2])


def test_025_a_seed_is_reported_where_it_matters(api: Api) -> None:
    assert api.details(PROMPT, max_new_tokens=2)["seed"] is None
    assert api.details(PROMPT, max_new_tokens=2, seed=7)["seed"] is None
    drawn = api.details(PROMPT, max_new_tokens=2, do_sample=True)["seed"]
    assert type(drawn) is int
    assert 0 <= drawn < U64
    assert api.details(PROMPT, max_new_tokens=2, do_sample=True, seed=7)["seed"] == 7


def test_026_without_details_there_is_only_text(api: Api) -> None:
    assert set(api.generate(PROMPT, max_new_tokens=2)) == {"generated_text"}
    assert set(api.generate(PROMPT, max_new_tokens=2, top_n_tokens=2)) == {"generated_text"}


def test_027_what_details_hold(api: Api) -> None:
    details = api.details(PROMPT, max_new_tokens=2)
    assert set(details) == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert details["prefill"] == []


@pytest.mark.parametrize("prompt", [PROMPT, "<bye>", "<end>"])
def test_028_tokens_are_counted(api: Api, prompt: str) -> None:
    details = api.details(prompt, max_new_tokens=9)
    assert len(details["tokens"]) == details["generated_tokens"]


@pytest.mark.parametrize("count", [1, 7, 40])
def test_029_a_limit_is_exact(api: Api, count: int) -> None:
    details = api.details(PROMPT, max_new_tokens=count)
    assert (details["generated_tokens"], details["finish_reason"]) == (count, "length")


def test_030_what_a_token_has(api: Api) -> None:
    for parameters in ({}, {"do_sample": True, "temperature": 1.3}):
        for token in api.details(PROMPT, max_new_tokens=20, **parameters)["tokens"]:
            assert set(token) == {"id", "text", "logprob", "special"}
            assert type(token["id"]) is int
            assert type(token["text"]) is str
            assert token["special"] is False
            assert token["logprob"] <= 0


def test_031_texts_add_up(api: Api) -> None:
    for prompt in (PROMPT, "<bye>"):
        answer = api.generate(prompt, details=True, max_new_tokens=40)
        assert answer["generated_text"].isascii()
        texts = [token["text"] for token in answer["details"]["tokens"] if not token["special"]]
        assert "".join(texts) == answer["generated_text"]


def test_032_the_end_of_text(api: Api) -> None:
    answer = api.generate("<bye>", details=True)
    assert answer["generated_text"] == " farewell"
    details = answer["details"]
    assert (details["finish_reason"], details["generated_tokens"]) == ("eos_token", 3)
    last = details["tokens"][-1]
    assert (last["id"], last["text"], last["special"]) == (EOS_ID, EOS, True)
    assert not any(token["special"] for token in details["tokens"][:-1])


def test_033_the_limit_comes_before_the_end_of_text(api: Api) -> None:
    details = api.details("<bye>", max_new_tokens=3)
    assert details["tokens"][-1]["id"] == EOS_ID
    assert details["finish_reason"] == "length"
    assert api.details("<bye>", max_new_tokens=4)["finish_reason"] == "eos_token"


@pytest.mark.parametrize("prompt", [PROMPT, f"  spaces {EMOJI}\n"])
def test_034_the_full_text(api: Api, prompt: str) -> None:
    alone = api.generate(prompt, max_new_tokens=5)["generated_text"]
    whole = api.generate(prompt, max_new_tokens=5, return_full_text=True)["generated_text"]
    assert alone
    assert whole == prompt + alone


def test_035_generate_returns_the_answer_alone(api: Api) -> None:
    default = api.generate(PROMPT, max_new_tokens=5)
    assert default == api.generate(PROMPT, max_new_tokens=5, return_full_text=False)
    assert not default["generated_text"].startswith(PROMPT)


def test_036_the_legacy_route_answers_an_array(api: Api) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3, "details": True}}
    (answer,) = api.ask("/", body)
    assert near(answer["details"], api.details(PROMPT, max_new_tokens=3))


def test_037_the_legacy_route_returns_the_prompt(api: Api) -> None:
    alone = api.generate(PROMPT, max_new_tokens=3)["generated_text"]
    parameters: dict[str, object] = {"max_new_tokens": 3}
    (answer,) = api.ask("/", {"inputs": PROMPT, "parameters": parameters})
    assert answer["generated_text"] == PROMPT + alone
    parameters["return_full_text"] = False
    (answer,) = api.ask("/", {"inputs": PROMPT, "parameters": parameters})
    assert answer["generated_text"] == alone


def test_038_which_route_streams(api: Api) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3}, "stream": True}
    events = api.stream("/", body)
    assert len(events.data) == 3
    assert events.data[-1]["generated_text"].startswith(PROMPT)  # as 37
    assert set(api.ask("/generate", body)) == {"generated_text"}


def test_039_headers_of_an_answer(api: Api) -> None:
    response = api.try_generate(PROMPT, max_new_tokens=3)
    assert response.status_code == 200
    headers = response.headers
    for name in INTEGER_HEADERS:
        assert re.fullmatch(r"\d+", headers[name]), (name, headers[name])
    assert re.fullmatch(r"\d+\.\d+", headers["x-compute-time"])
    assert headers["x-compute-type"]
    parts = ("x-validation-time", "x-queue-time", "x-inference-time")
    assert sum(int(headers[name]) for name in parts) <= int(headers["x-total-time"]) + len(parts)


def test_040_characters_are_counted(api: Api) -> None:
    response = api.try_generate("é😀", max_new_tokens=1)
    assert answered(response)
    assert response.headers["x-compute-characters"] == "2"


def test_041_tokens_are_counted_in_headers(api: Api) -> None:
    for prompt in (PROMPT, "naïve é😀"):
        response = api.try_generate(prompt, max_new_tokens=5, details=True)
        details = answered(response)["details"]
        assert response.headers["x-prompt-tokens"] == str(len(api.tokenize(prompt)))
        assert response.headers["x-generated-tokens"] == str(details["generated_tokens"])


def test_042_truncate_keeps_the_last_tokens(api: Api) -> None:
    tokens = api.tokenize("The quick brown falcon")
    last = "".join(token["text"] for token in tokens[-3:])
    assert [token["id"] for token in api.tokenize(last)] == [token["id"] for token in tokens[-3:]]
    response = api.try_generate("The quick brown falcon", truncate=3, max_new_tokens=12)
    assert response.headers["x-prompt-tokens"] == "3"
    cut = answered(response)["generated_text"]
    assert cut == api.generate(last, max_new_tokens=12)["generated_text"]
    assert cut != api.generate("The quick brown falcon", max_new_tokens=12)["generated_text"]


def test_043_truncate_returns_the_whole_prompt(api: Api) -> None:
    prompt = "The quick brown falcon"
    cut = api.generate(prompt, truncate=3, max_new_tokens=4)["generated_text"]
    whole = api.generate(prompt, truncate=3, max_new_tokens=4, return_full_text=True)
    assert whole["generated_text"] == prompt + cut


def test_044_a_stop_string_ends_the_text(api: Api) -> None:
    answer = api.generate("<count>", stop=["x"], details=True)
    assert answer["generated_text"] == "".join(COUNTED)
    assert answer["generated_text"].endswith("x")
    assert answer["details"]["finish_reason"] == "stop_sequence"


def test_045_a_stop_string_over_two_tokens(api: Api) -> None:
    answer = api.generate("<count>", stop=["ne two"], details=True)
    assert answer["generated_text"] == " one two"
    assert [token["text"] for token in answer["details"]["tokens"]] == [" one", " two"]
    assert answer["details"]["finish_reason"] == "stop_sequence"


def test_046_a_stop_string_in_the_prompt(api: Api) -> None:
    prompt = " two three<count>"
    details = api.details(prompt, stop=["two three", "three o"], max_new_tokens=2)
    assert (details["generated_tokens"], details["finish_reason"]) == (2, "length")


def test_047_the_limit_comes_before_a_stop_string(api: Api) -> None:
    answer = api.generate("<count>", stop=["two"], max_new_tokens=2, details=True)
    assert answer["generated_text"] == " one two"
    assert answer["details"]["finish_reason"] == "length"
    later = api.details("<count>", stop=["two"], max_new_tokens=3)
    assert (later["generated_tokens"], later["finish_reason"]) == (2, "stop_sequence")


def test_048_too_many_stop_strings(api: Api) -> None:
    invalid(api.try_generate(PROMPT, stop=["a", "b", "c", "d", "e"]), "`stop`", "4", "5")
    assert api.try_generate(PROMPT, stop=["a", "b", "c", "d"]).status_code == 200


@pytest.mark.parametrize("parameters", [{}, {"do_sample": True, "seed": 3}])
def test_049_the_best_tokens(api: Api, parameters: dict[str, object]) -> None:
    details = api.details(PROMPT, max_new_tokens=8, top_n_tokens=3, **parameters)
    assert len(details["top_tokens"]) == details["generated_tokens"] == 8
    plain = api.details(PROMPT, max_new_tokens=8, **parameters)
    assert near(details["tokens"], plain["tokens"])
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert len(top) == 3
        assert all(set(each) == {"id", "text", "logprob", "special"} for each in top)
        logprobs = [each["logprob"] for each in top]
        assert logprobs == sorted(logprobs, reverse=True)
        assert token["logprob"] <= logprobs[0]
        if not parameters:
            assert (token["id"], token["logprob"]) == (top[0]["id"], top[0]["logprob"])


def test_050_no_best_tokens(api: Api) -> None:
    assert "top_tokens" not in api.details(PROMPT, max_new_tokens=2, top_n_tokens=0)
    assert "top_tokens" not in api.details(PROMPT, max_new_tokens=2)
    assert len(api.details(PROMPT, max_new_tokens=1, top_n_tokens=5)["top_tokens"][0]) == 5
    invalid(api.try_generate(PROMPT, top_n_tokens=6), "`top_n_tokens`", "5", "6")
