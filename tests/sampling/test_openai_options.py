"""logit_bias, presence_penalty and the count penalty, as OpenAI documents them."""

import math

import msgspec
import numpy as np
import pytest
import torch

from support import sampling_reference as reference
from tiercel.sampling.sampler import Sampler
from tiercel.wire.request import SamplingParams
from tiercel.wire.step import RowFailure, SampledToken

VOCAB = 300
PROMPT, GENERATED = [5, 9, 5, 5, 0], [299, 17, 9, 17, 17]


def make(params: SamplingParams, prompt_tokens: int = len(PROMPT)) -> Sampler:
    sampler = Sampler(VOCAB, 1, watermark_gamma=0.5, watermark_delta=2.0)
    sampler.start(0, msgspec.structs.replace(params, top_n_tokens=VOCAB), prompt_tokens)
    return sampler


def row(seed: int = 0, scale: float = 3.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, scale, VOCAB)
    return values.astype(np.float32).astype(np.float64)


def left(sampler: Sampler, values: np.ndarray, known: list[int]) -> np.ndarray:
    """The logprobs of all tokens after processing; -inf where a token was filtered."""
    logits = torch.from_numpy(values.astype(np.float32)).unsqueeze(0)
    result = sampler.sample(logits, [0], [np.array(known)], [len(known)])[0]
    assert isinstance(result, SampledToken)
    found = np.full(VOCAB, -np.inf)
    found[result.top_ids] = result.top_logprobs
    return found


def penalised(values: np.ndarray, presence: float, count: float) -> np.ndarray:
    out = values.copy()
    for token in set(GENERATED):
        out[token] -= presence + count * GENERATED.count(token)
    return out


@pytest.mark.parametrize(("presence", "count"), [(1.5, 0.0), (-2.0, 0.0), (0.0, 0.7), (0.5, -1.2)])
def test_penalties_are_over_the_generated_text_only(presence: float, count: float) -> None:
    params = SamplingParams(presence_penalty=presence, count_penalty=count)
    found = left(make(params), row(), PROMPT + GENERATED)
    wanted = reference.log_softmax(penalised(row(), presence, count))
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_the_first_token_has_no_penalty() -> None:
    params = SamplingParams(presence_penalty=2.0, count_penalty=2.0)
    np.testing.assert_allclose(left(make(params), row(), PROMPT), reference.log_softmax(row()))


def test_a_row_that_is_started_again_after_preemption_is_penalised_alike() -> None:
    params = SamplingParams(do_sample=True, presence_penalty=1.1, count_penalty=0.4, seed=3)
    sampler = make(params)
    known = PROMPT + GENERATED
    before = left(sampler, row(), known)
    sampler.start(0, SamplingParams())
    sampler.start(0, msgspec.structs.replace(params, top_n_tokens=VOCAB), len(PROMPT))
    assert np.array_equal(left(sampler, row(), known), before)


def test_a_bias_is_added_to_the_logits_as_the_model_gave_them() -> None:
    bias = [(3, 5.0), (299, -100.0), (0, 0.25)]
    biased = row()
    for token, value in bias:
        biased[token] += value
    found = left(make(SamplingParams(logit_bias=bias)), row(), PROMPT)
    np.testing.assert_allclose(found, reference.log_softmax(biased), atol=2e-5)
    best = int(row().argmax())
    banned = left(make(SamplingParams(logit_bias=[(best, -100.0)])), row(), PROMPT)
    assert int(banned.argmax()) == int(np.argsort(row())[-2])
    forced = left(make(SamplingParams(logit_bias=[(42, 100.0)])), row(), PROMPT)
    assert int(forced.argmax()) == 42


def test_the_order_is_bias_contract_penalties_openai_penalties_temperature() -> None:
    """In a case where every swap of neighbours would show."""
    bias = [(token, 4.0) for token in [*GENERATED, 1, 2]]
    params = SamplingParams(
        True, 0.5, 20, 0.9, 1.0, 1.6, 0.8, logit_bias=bias, presence_penalty=0.9, count_penalty=0.3
    )
    expected = row(scale=1.0)
    for token, value in bias:
        expected[token] += value
    known = PROMPT + GENERATED
    expected = reference.frequency(reference.repetition(expected, known, 1.6), known, 0.8)
    expected = penalised(expected, 0.9, 0.3) / 0.5
    expected = reference.log_softmax(reference.top_p(reference.top_k(expected, 20), 0.9))
    np.testing.assert_allclose(left(make(params), row(scale=1.0), known), expected, atol=2e-5)


def test_a_masked_token_stays_masked_whatever_its_bias() -> None:
    values = row()
    values[7] = -np.inf
    assert left(make(SamplingParams(logit_bias=[(7, 100.0)])), values, PROMPT)[7] == -math.inf


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_an_id_that_no_logit_has_is_refused_when_the_row_starts(token: int) -> None:
    with pytest.raises(ValueError, match="`logit_bias` ids must be from 0 to 299"):
        make(SamplingParams(logit_bias=[(4, 1.0), (token, 1.0)]))


def test_rows_have_their_own_prompts_biases_and_penalties() -> None:
    asked = [
        SamplingParams(presence_penalty=5.0),
        SamplingParams(logit_bias=[(8, 50.0)]),
        SamplingParams(),
        SamplingParams(presence_penalty=5.0, logit_bias=[(9, 50.0)]),
    ]
    known = np.array(PROMPT + GENERATED)
    logits = torch.from_numpy(row().astype(np.float32)).repeat(4, 1)
    together = Sampler(VOCAB, 4, watermark_gamma=0.5, watermark_delta=2.0)
    for number, params in enumerate(asked):
        together.start(number, params, number)
    results = together.sample(logits, [3, 1, 0, 2], [known] * 4, [10] * 4)
    for number, result in zip((3, 1, 0, 2), results, strict=True):
        alone = Sampler(VOCAB, 4, watermark_gamma=0.5, watermark_delta=2.0)
        alone.start(number, asked[number], number)
        assert not isinstance(result, RowFailure)
        assert alone.sample(logits[:1], [number], [known], [10]) == [result]
