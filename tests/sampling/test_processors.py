"""Every formula of the contract against a plain reference, alone and in the contract's order."""

import itertools
import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support import sampling_reference as reference
from tiercel.sampling.sampler import Sampler
from tiercel.sampling.watermark import green_ids
from tiercel.wire.request import SamplingParams
from tiercel.wire.step import SampledToken

VOCAB = 300


def processed(
    row: np.ndarray, known: list[int], params: SamplingParams, delta: float = 2.0
) -> dict[int, float]:
    """The logprob of every token that is left, through the public interface."""
    sampler = Sampler(len(row), 1, watermark_gamma=0.5, watermark_delta=delta)
    sampler.start(0, msgspec.structs.replace(params, top_n_tokens=len(row)))
    logits = torch.from_numpy(row.astype(np.float32)).unsqueeze(0)
    result = sampler.sample(logits, [0], [np.array(known)], [len(known)])[0]
    assert isinstance(result, SampledToken)
    left = dict(zip(result.top_ids, result.top_logprobs, strict=True))
    assert left[result.token_id] == result.logprob
    return left


def expect(row: np.ndarray, known: list[int], params: SamplingParams) -> dict[int, float]:
    logprobs = reference.log_softmax(
        reference.process(row.astype(np.float32).astype(np.float64), known, params)
    )
    return {i: value for i, value in enumerate(logprobs.tolist()) if value > -math.inf}


def assert_close(found: dict[int, float], wanted: dict[int, float]) -> None:
    assert found.keys() == wanted.keys()
    ids = list(found)
    np.testing.assert_allclose([found[i] for i in ids], [wanted[i] for i in ids], atol=2e-5)


def logits(seed: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, VOCAB)


KNOWN = [5, 9, 5, 5, 0, 299, 17]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.7),
        SamplingParams(repetition_penalty=0.4),
        SamplingParams(frequency_penalty=2.0),
        SamplingParams(frequency_penalty=-1.5),
        SamplingParams(do_sample=True, temperature=0.5),
        SamplingParams(do_sample=True, temperature=3.0),
        SamplingParams(do_sample=True, top_k=7),
        SamplingParams(do_sample=True, top_p=0.6),
        SamplingParams(do_sample=True, typical_p=0.3),
        SamplingParams(do_sample=True, typical_p=0.95),
        SamplingParams(watermark=True),
        SamplingParams(True, 0.8, 120, 0.9, 0.8, 1.3, 0.7, seed=3, watermark=True),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_each_formula_and_all_in_order(params: SamplingParams, seed: int) -> None:
    row = logits(seed)
    assert_close(processed(row, KNOWN, params), expect(row, KNOWN, params))


def test_the_order_matters_and_is_the_contracts() -> None:
    """Each neighbouring pair, in a case where swapping the two would show."""
    row = logits(11, scale=1.0)
    for params in (
        SamplingParams(watermark=True, repetition_penalty=2.0),
        SamplingParams(repetition_penalty=2.0, frequency_penalty=2.0),
        SamplingParams(do_sample=True, frequency_penalty=2.0, temperature=0.3),
        SamplingParams(do_sample=True, temperature=0.3, top_p=0.7),
        SamplingParams(do_sample=True, top_k=5, top_p=0.5),
        SamplingParams(do_sample=True, top_p=0.5, typical_p=0.5),
    ):
        assert_close(processed(row, KNOWN, params), expect(row, KNOWN, params))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-12, 12), min_size=2, max_size=40),
    st.integers(1, 45),
    st.floats(0.05, 0.99),
    st.floats(0.05, 0.99),
    st.data(),
)
def test_filters_with_many_ties(
    values: list[int], k: int, p: float, m: float, data: st.DataObject
) -> None:
    """Quarter steps make ties; masses at the very cut are left out: rounding may go either way."""
    row = np.array(values) / 4.0
    known = data.draw(st.lists(st.integers(0, len(row) - 1), min_size=1, max_size=9))
    for params in (
        SamplingParams(do_sample=True, top_k=k),
        SamplingParams(do_sample=True, top_p=p),
        SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5),
    ):
        cumulative = np.cumsum(np.sort(np.exp(reference.log_softmax(row))))
        if params.top_p < 1 and np.abs(cumulative - (1 - p)).min() < 1e-5:
            continue
        assert_close(processed(row, known, params), expect(row, known, params))
    typical = SamplingParams(do_sample=True, typical_p=m)
    left = processed(row, known, typical)
    mass = math.fsum(np.exp(reference.log_softmax(row))[sorted(left)])
    assert mass >= m - 1e-5


def test_a_cut_among_thousands_of_nearly_equal_tokens() -> None:
    rng = np.random.default_rng(5)
    row = rng.normal(0, 0.5, 5000)
    for params in (
        SamplingParams(do_sample=True, top_p=0.97),
        SamplingParams(do_sample=True, typical_p=0.97),
        SamplingParams(do_sample=True, top_p=0.3, typical_p=0.9),
    ):
        found, wanted = processed(row, [1], params), expect(row, [1], params)
        # float32 masses may move the cut by one of thousands of nearly equal tokens.
        assert len(found.keys() ^ wanted.keys()) <= 1
        both = sorted(found.keys() & wanted.keys())
        assert len(both) > 256
        np.testing.assert_allclose([found[i] for i in both], [wanted[i] for i in both], atol=1e-3)


@pytest.mark.parametrize("gap", [20.0, 31.9, 32.0, 60.0])
def test_a_cut_far_below_the_likeliest_token(gap: float) -> None:
    """Masses of e^-20 and less are lost in a float32 sum, and share the last bucket from 32 on."""
    row = np.array([0.0, gap, -1.0, -2.0])
    for p in (0.5, 0.9999999):
        params = SamplingParams(do_sample=True, top_p=p, typical_p=p)
        assert set(processed(row, [0], params)) == {1}
    everything = np.nextafter(1.0, 0.0)
    assert 1 in processed(row, [0], SamplingParams(do_sample=True, top_p=everything))


def test_equal_logits_at_the_cut_of_top_p_keep_the_higher_ids() -> None:
    assert set(processed(np.zeros(10), [1], SamplingParams(do_sample=True, top_p=0.35))) == {
        6, 7, 8, 9,
    }  # fmt: skip


def test_ties_with_the_kth_stay_and_k_is_clamped() -> None:
    row = np.array([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    assert set(processed(row, [0], SamplingParams(do_sample=True, top_k=2))) == {1, 2, 3, 4}
    assert len(processed(row, [0], SamplingParams(do_sample=True, top_k=1000))) == 6
    one = processed(row, [0], SamplingParams(do_sample=True, top_k=1))
    assert one == {1: 0.0}


def test_the_likeliest_token_always_stays() -> None:
    row = logits(4)
    best = int(row.argmax())
    assert set(processed(row, [0], SamplingParams(do_sample=True, top_p=1e-9))) == {best}
    tiny = processed(row, [0], SamplingParams(do_sample=True, temperature=1e-40))
    assert tiny[best] == 0.0
    assert max(value for i, value in tiny.items() if i != best) < -1e30


def test_an_id_of_the_prompt_alone_is_penalised_once() -> None:
    row = np.zeros(4) + np.array([2.0, -2.0, 2.0, -2.0])
    left = processed(row, [0, 1, 0, 0], SamplingParams(repetition_penalty=2.0))
    wanted = reference.log_softmax(np.array([1.0, -4.0, 2.0, -2.0]))
    np.testing.assert_allclose([left[i] for i in range(4)], wanted, atol=1e-6)


def test_masked_logits_stay_masked_through_every_processor() -> None:
    row = logits(8)
    row[10:200] = -np.inf
    params = SamplingParams(True, 0.7, 50, 0.95, 0.9, 1.2, 0.3, watermark=True)
    left = processed(row, [12, 5, 250], params)
    assert left
    assert not left.keys() & set(range(10, 200))
    assert_close(left, expect(row, [12, 5, 250], params))


def test_green_lists_are_fixed_and_judge_their_own_text() -> None:
    assert torch.equal(green_ids(VOCAB, 7, 0.5), green_ids(VOCAB, 7, 0.5))
    assert not torch.equal(green_ids(VOCAB, 7, 0.5), green_ids(VOCAB, 8, 0.5))
    assert len(green_ids(VOCAB, 7, 0.25).unique()) == 75
    sampler = Sampler(VOCAB, 2, watermark_gamma=0.5, watermark_delta=2.0)
    sampler.start(0, SamplingParams(do_sample=True, seed=1, watermark=True))
    sampler.start(1, SamplingParams(do_sample=True, seed=1))
    texts = [[0], [0]]
    rng = np.random.default_rng(0)
    for position in range(1, 301):
        row = torch.from_numpy(rng.normal(0, 1, (1, VOCAB)).astype(np.float32)).expand(2, -1)
        step = sampler.sample(row, [0, 1], [np.array(text) for text in texts], [position] * 2)
        for text, result in zip(texts, step, strict=True):
            assert isinstance(result, SampledToken)
            text.append(result.token_id)
    share = [
        np.mean([b in green_ids(VOCAB, a, 0.5) for a, b in itertools.pairwise(text)])
        for text in texts
    ]
    assert share[0] > 0.8  # e^2 / (e^2 + 1) = 0.88
    assert 0.4 < share[1] < 0.6
