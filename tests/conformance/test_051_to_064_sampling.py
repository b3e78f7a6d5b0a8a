"""Statements 51 to 64 of the contract's section 11: how a token of `/generate` is chosen."""

import itertools
import statistics
from typing import Any

import numpy as np
import pytest

from support.conformance import Api, at_once, invalid, near
from support.conformance_model import VOCAB_SIZE
from support.conformance_reference import Reference, close
from support.sampling_reference import log_softmax
from tiercel.sampling.watermark import green_ids
from tiercel.wire.request import SamplingParams

PROMPT = "Hello there"
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "seed": 42, "max_new_tokens": 20}


def prompt_ids(api: Api, prompt: str = PROMPT) -> list[int]:
    return [token["id"] for token in api.tokenize(prompt)]


def check_logprobs(
    api: Api, reference: Reference, asked: dict[str, Any], params: SamplingParams
) -> list[int]:
    """A generation's logprobs are the formulas' over the reference forward; its ids."""
    tokens = api.details(PROMPT, **asked)["tokens"]
    generated = [token["id"] for token in tokens]
    wanted = reference.logprobs(prompt_ids(api), generated, params)
    assert close([token["logprob"] for token in tokens], wanted)
    return generated


def test_051_top_k_of_one_is_greedy(api: Api) -> None:
    tokens = api.details(PROMPT, do_sample=True, top_k=1, max_new_tokens=20)["tokens"]
    assert [token["id"] for token in tokens] == api.ids(PROMPT, max_new_tokens=20)
    assert {token["logprob"] for token in tokens} == {0.0}


def test_052_top_k_of_one_leaves_one_best_token(api: Api) -> None:
    details = api.details(PROMPT, top_k=1, top_n_tokens=5, max_new_tokens=6)
    best = [[(token["id"], token["logprob"]) for token in top] for top in details["top_tokens"]]
    assert best == [[(token["id"], 0.0)] for token in details["tokens"]]


def test_053_temperature_switches_sampling_on(api: Api) -> None:
    one = api.details(PROMPT, temperature=1.0, max_new_tokens=10)
    assert near(one, api.details(PROMPT, max_new_tokens=10))
    assert one["seed"] is None
    assert type(api.details(PROMPT, temperature=0.5, max_new_tokens=10)["seed"]) is int


def test_054_a_seed_repeats(api: Api) -> None:
    runs = [api.ids(PROMPT, **SAMPLED) for _ in range(10)]
    assert all(run == runs[0] for run in runs)
    assert api.ids(PROMPT, **{**SAMPLED, "seed": 43}) != runs[0]


def test_055_a_seed_repeats_in_company(api: Api) -> None:
    alone = api.ids(PROMPT, **SAMPLED)

    def others() -> list[int]:
        return api.ids("Some other text", do_sample=True, max_new_tokens=100)

    def ours() -> list[int]:
        return api.ids(PROMPT, **SAMPLED)

    together = at_once([others, others, ours, others, ours, others])
    assert together[2] == together[4] == alone


def test_056_penalties_that_change_nothing(api: Api) -> None:
    plain = api.details(PROMPT, max_new_tokens=20)
    neutral = {"repetition_penalty": 1.0, "frequency_penalty": 0.0}
    assert near(api.details(PROMPT, max_new_tokens=20, **neutral), plain)


def test_057_repetition_counts_the_prompt(api: Api, reference: Reference) -> None:
    """The likeliest next token is put into the prompt, where nothing has been generated yet."""
    (first,) = api.details(PROMPT, max_new_tokens=1)["tokens"]
    prompt = first["text"] + PROMPT
    ids = prompt_ids(api, prompt)
    (step,) = reference.steps(ids, [first["id"]])
    penalised = step.logprobs(SamplingParams(repetition_penalty=2.0))
    details = api.details(prompt, repetition_penalty=2.0, max_new_tokens=1, top_n_tokens=5)
    (top,) = details["top_tokens"]
    assert [token["id"] for token in top] == np.argsort(-penalised, kind="stable")[:5].tolist()
    assert close([token["logprob"] for token in top], [penalised[token["id"]] for token in top])
    assert not close(
        [token["logprob"] for token in top],
        [log_softmax(step.logits)[token["id"]] for token in top],
    )


def test_058_logprobs_are_after_temperature(api: Api, reference: Reference) -> None:
    asked = {"temperature": 0.5, "seed": 1, "max_new_tokens": 20}
    check_logprobs(api, reference, asked, SamplingParams(temperature=0.5))


@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"frequency_penalty": 2.0},
        {"frequency_penalty": -1.5},
        {"repetition_penalty": 1.3, "frequency_penalty": 1.0},
    ],
)
def test_059_penalties_follow_the_formulas(
    api: Api, reference: Reference, penalties: dict[str, Any]
) -> None:
    params = SamplingParams(**penalties)
    generated = check_logprobs(api, reference, {**penalties, "max_new_tokens": 40}, params)
    steps = reference.steps(prompt_ids(api), generated)
    assert [int(step.processed(params).argmax()) for step in steps] == generated


@pytest.mark.parametrize("cut", [{"top_p": 0.5}, {"top_p": 0.9}, {"typical_p": 0.4}])
def test_060_cut_tokens_are_never_drawn(
    api: Api, reference: Reference, cut: dict[str, Any]
) -> None:
    """200 draws of 50 tokens' length each four times. The reference set is a hair wider."""
    (name, value), *_ = cut.items()
    wide = SamplingParams(**{name: value + 1e-4})
    could_fail = 0
    for seed in range(4):
        generated = api.ids(PROMPT, **cut, seed=seed, max_new_tokens=50)
        steps = reference.steps(prompt_ids(api), generated)
        for step, token in zip(steps, generated, strict=True):
            kept = np.isfinite(step.processed(wide))
            assert kept[token]
            could_fail += int(not kept.all())
    assert could_fail == 200


def test_061_a_watermark_changes_greedy_tokens(api: Api, prefill_api: Api) -> None:
    """With gamma 0.25 and a bonus that nothing outweighs, every token is green."""
    plain = api.ids(PROMPT, max_new_tokens=60)
    marked = api.ids(PROMPT, max_new_tokens=60, watermark=True)
    assert marked != plain
    assert marked == api.ids(PROMPT, max_new_tokens=60, watermark=True)
    loud = prefill_api.ids(PROMPT, max_new_tokens=60, watermark=True)
    assert _green_share(api, loud, gamma=0.25) == 1.0
    assert _green_share(api, plain, gamma=0.25) < 0.6
    assert _green_share(api, marked, gamma=0.5) > _green_share(api, plain, gamma=0.5) + 0.1


def _green_share(api: Api, generated: list[int], *, gamma: float) -> float:
    """The share of tokens that are on the server's own list."""
    ids = [prompt_ids(api)[-1], *generated]
    pairs = itertools.pairwise(ids)
    return statistics.mean(
        token in set(green_ids(VOCAB_SIZE, before, gamma).tolist()) for before, token in pairs
    )


def test_062_the_best_of_two(api: Api) -> None:
    for _ in range(3):
        asked = {"best_of": 2, "do_sample": True, "details": True, "max_new_tokens": 12}
        answer = api.generate(PROMPT, **asked)
        winner = answer["details"]
        (loser,) = winner["best_of_sequences"]
        assert set(loser) == {
            "generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens",
        }  # fmt: skip
        assert type(winner["seed"]) is type(loser["seed"]) is int
        assert winner["seed"] != loser["seed"]
        assert _mean_logprob(winner) >= _mean_logprob(loser)
        assert answer["generated_text"] != loser["generated_text"]
        again = api.generate(PROMPT, do_sample=True, seed=loser["seed"], max_new_tokens=12)
        assert again["generated_text"] == loser["generated_text"]


def _mean_logprob(sequence: dict[str, Any]) -> float:
    return float(statistics.mean(token["logprob"] for token in sequence["tokens"]))


def test_063_when_there_is_no_best_of(api: Api) -> None:
    invalid(api.try_generate(PROMPT, best_of=2), "`best_of`", "sampling")
    invalid(api.try_generate(PROMPT, best_of=2, do_sample=True, seed=1), "`seed`", "`best_of`")
    invalid(api.try_generate(PROMPT, best_of=3, do_sample=True), "`best_of`", "2", "3")


def test_064_the_best_of_one(api: Api) -> None:
    plain = api.generate(PROMPT, max_new_tokens=4)
    assert api.generate(PROMPT, best_of=1, max_new_tokens=4) == plain
    assert api.ids(PROMPT, best_of=1, **SAMPLED) == api.ids(PROMPT, **SAMPLED)
    assert "best_of_sequences" not in api.details(PROMPT, best_of=1, max_new_tokens=4)
    events = api.events(PROMPT, best_of=1, max_new_tokens=4)
    assert events.data[-1]["generated_text"] == plain["generated_text"]
