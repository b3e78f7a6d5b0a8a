"""The sampler as the worker sees it: neighbours, draws, top tokens, faults."""

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support import sampling_reference as reference
from tiercel.sampling.sampler import Sampler
from tiercel.wire.request import SamplingParams
from tiercel.wire.step import RowFailure, SampledToken

EVERYTHING = SamplingParams(True, 0.8, 40, 0.95, 0.9, 1.2, 0.4, 11, 3, True)
MIXED = [
    SamplingParams(),
    EVERYTHING,
    SamplingParams(top_n_tokens=2),
    SamplingParams(do_sample=True, seed=2**64 - 1),
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(do_sample=True, typical_p=0.7, seed=4, top_n_tokens=5),
    SamplingParams(do_sample=True, top_p=0.8, temperature=1.4, seed=5),
    SamplingParams(frequency_penalty=-0.5, watermark=True),
    SamplingParams(),
    SamplingParams(do_sample=True, top_k=3, seed=6),
]


def make(params: list[SamplingParams], vocab: int, rows: list[int] | None = None) -> Sampler:
    rows = list(range(len(params))) if rows is None else rows
    sampler = Sampler(vocab, max(rows) + 1, watermark_gamma=0.5, watermark_delta=2.0)
    for row, each in zip(rows, params, strict=True):
        sampler.start(row, each)
    return sampler


def batch(n: int, vocab: int, seed: int = 0) -> tuple[torch.Tensor, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (n, vocab)).astype(np.float32))
    return logits, [rng.integers(0, vocab, size) for size in rng.integers(1, 90, n)]


def without_row(result: SampledToken | RowFailure) -> SampledToken | RowFailure:
    return msgspec.structs.replace(result, row=0)


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("vocab", [1001, 4096, 65024])
def test_a_row_gets_the_same_bits_alone_and_among_others(vocab: int, two_threads: None) -> None:
    """Alone, in a batch, in another order and on another row number: equal to the last bit."""
    n = len(MIXED)
    logits, tokens = batch(n, vocab)
    positions = [len(each) for each in tokens]
    original = logits.clone()
    together = make(MIXED, vocab).sample(logits, list(range(n)), tokens, positions)
    assert torch.equal(logits, original)
    assert all(isinstance(result, SampledToken) for result in together)
    assert [result.row for result in together] == list(range(n))
    for i in range(n):
        alone = make([MIXED[i]], vocab, rows=[3]).sample(
            logits[i : i + 1].clone(), [3], [tokens[i]], [positions[i]]
        )
        assert without_row(alone[0]) == without_row(together[i])
    order = [7, 2, 9, 0, 5, 1]
    again = make(MIXED, vocab).sample(
        logits[order], order, [tokens[i] for i in order], [positions[i] for i in order]
    )
    assert again == [together[i] for i in order]


def test_a_resumed_row_goes_on_with_the_same_draws() -> None:
    """Starting again mid-way, on another row, changes nothing; another seed changes much."""
    logits, _ = batch(40, 500)
    tokens = [np.arange(3)]

    def run(restart_at: int | None, seed: int = 9) -> list[int]:
        params = SamplingParams(do_sample=True, seed=seed)
        sampler, row, ids = make([params] * 2, 500), 0, []
        for step in range(40):
            if step == restart_at:
                sampler, row = make([params] * 2, 500), 1
            result = sampler.sample(logits[step : step + 1], [row], tokens, [100 + step])[0]
            assert isinstance(result, SampledToken)
            ids.append(result.token_id)
        return ids

    assert run(None) == run(17)
    assert sum(a != b for a, b in zip(run(None), run(None, seed=10), strict=True)) > 20


def test_greedy_is_the_argmax_and_its_logprob() -> None:
    logits, tokens = batch(5, 700)
    logits[2, 300] = logits[2, 100] = 50.0  # the first of equals
    results = make([SamplingParams()] * 5, 700).sample(logits, list(range(5)), tokens, [1] * 5)
    for row, result in zip(logits.double().numpy(), results, strict=True):
        assert isinstance(result, SampledToken)
        assert result.token_id == int(row.argmax())
        assert result.logprob == pytest.approx(reference.log_softmax(row).max(), abs=1e-5)
        assert result.logprob <= 0
        assert result.top_ids == []
    assert results[2].token_id == 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_read_as_they_are(dtype: torch.dtype) -> None:
    logits, tokens = batch(3, 400)
    half = logits.to(dtype)
    params = [SamplingParams(), EVERYTHING, SamplingParams(do_sample=True)]
    positions = [len(each) for each in tokens]
    found = make(params, 400).sample(half, [0, 1, 2], tokens, positions)
    assert found == make(params, 400).sample(half.float(), [0, 1, 2], tokens, positions)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(do_sample=True),
        SamplingParams(do_sample=True, temperature=2.0, top_k=12),
        SamplingParams(do_sample=True, top_p=0.7),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    """Chi-square over 20,000 draws: rows are positions of one seed, then seeds of one position."""
    vocab, n, rounds = 24, 500, 40
    row = np.random.default_rng(1).normal(0, 1.2, vocab)
    logits = torch.from_numpy(row.astype(np.float32)).expand(n, -1).contiguous()
    expected = np.exp(reference.log_softmax(reference.process(row, [0], params)))
    for same_seed in (True, False):
        seeds = [7] * n if same_seed else list(range(n))
        sampler = make([msgspec.structs.replace(params, seed=seed) for seed in seeds], vocab)
        counts = np.zeros(vocab)
        for step in range(rounds):
            positions = [step * n + i if same_seed else step for i in range(n)]
            for result in sampler.sample(logits, list(range(n)), [np.array([0])] * n, positions):
                assert isinstance(result, SampledToken)
                counts[result.token_id] += 1
        assert counts[expected == 0].sum() == 0
        wanted = expected[expected > 0] * n * rounds
        chi_square = float(((counts[expected > 0] - wanted) ** 2 / wanted).sum())
        freedom = len(wanted) - 1
        # Mean k, deviation sqrt(2k): five deviations. The draws are fixed.
        assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_filtered_tokens_never_appear_even_at_the_edges_of_the_draw() -> None:
    """Mass only at the first, the last or a middle id; every draw must land there."""
    for only in (0, 7, 15):
        logits = torch.full((200, 16), -torch.inf)
        logits[:, only] = 1.0
        sampler = make([SamplingParams(do_sample=True, seed=i) for i in range(200)], 16)
        results = sampler.sample(logits, list(range(200)), [np.array([1])] * 200, [3] * 200)
        assert {(each.token_id, each.logprob) for each in results} == {(only, 0.0)}


def test_a_flat_row_returns_all_its_ties() -> None:
    sampler = make([SamplingParams(top_n_tokens=3)], 100)
    result = sampler.sample(torch.zeros(1, 100), [0], [np.array([0])], [1])[0]
    assert isinstance(result, SampledToken)
    assert result.top_ids == list(range(100))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 0.75, 2.0]), min_size=1, max_size=40),
    st.integers(1, 12),
)
def test_top_tokens_with_ties_and_filtered_ones(values: list[float], n: int) -> None:
    row = np.array(values)
    if not np.isfinite(row).any():
        return
    sampler = make([SamplingParams(top_n_tokens=n)], len(row))
    logits = torch.from_numpy(row.astype(np.float32)).unsqueeze(0)
    result = sampler.sample(logits, [0], [np.array([0])], [1])[0]
    assert isinstance(result, SampledToken)
    cut = np.sort(row)[::-1][min(n, len(row)) - 1]
    wanted = sorted(
        (i for i in range(len(row)) if row[i] >= cut and row[i] > -np.inf),
        key=lambda i: (-row[i], i),
    )
    assert result.top_ids == wanted
    np.testing.assert_allclose(result.top_logprobs, reference.log_softmax(row)[wanted], atol=1e-5)
    assert result.top_ids[0] == result.token_id
    assert result.top_logprobs[0] == result.logprob


def test_top_tokens_belong_to_the_processed_row_not_to_the_draw() -> None:
    logits, tokens = batch(1, 64)
    ids = set()
    for seed in range(30):
        sampler = make([SamplingParams(do_sample=True, top_n_tokens=2, seed=seed)], 64)
        result = sampler.sample(logits, [0], tokens, [4])[0]
        assert isinstance(result, SampledToken)
        assert result.top_ids[0] == int(logits.argmax())
        assert len(result.top_ids) == 2
        ids.add(result.token_id)
    assert len(ids) > 2
    sampler = make([SamplingParams(do_sample=True, top_k=1, top_n_tokens=5)], 64)
    result = sampler.sample(logits, [0], tokens, [4])[0]
    assert isinstance(result, SampledToken)
    assert (result.top_ids, result.top_logprobs) == ([result.token_id], [0.0])


@pytest.mark.parametrize("poison", ["nan", "inf", "nothing left"])
@pytest.mark.parametrize("params", MIXED[:8])
def test_a_poisoned_row_fails_alone(poison: str, params: SamplingParams) -> None:
    logits, tokens = batch(3, 300)
    around = [SamplingParams(), params, EVERYTHING]
    positions = [len(each) for each in tokens]
    clean = make(around, 300).sample(logits, [0, 1, 2], tokens, positions)
    if poison == "nothing left":
        logits[1] = -torch.inf
    else:
        logits[1, 123] = float(poison)
    results = make(around, 300).sample(logits, [0, 1, 2], tokens, positions)
    assert isinstance(results[1], RowFailure)
    assert results[1].row == 1
    assert [results[0], results[2]] == [clean[0], clean[2]]


def test_a_row_whose_processing_raises_fails_alone() -> None:
    logits, tokens = batch(4, 300)
    params = [SamplingParams(repetition_penalty=1.5), EVERYTHING] * 2
    positions = [len(each) for each in tokens]
    clean = make(params, 300).sample(logits, [0, 1, 2, 3], tokens, positions)
    tokens[2] = np.array([1, 2, 300])  # outside the vocabulary
    results = make(params, 300).sample(logits, [0, 1, 2, 3], tokens, positions)
    assert isinstance(results[2], RowFailure)
    assert "300" in results[2].message
    assert [results[i] for i in (0, 1, 3)] == [clean[i] for i in (0, 1, 3)]


def test_logits_of_the_wrong_shape_are_a_bug_of_the_caller() -> None:
    sampler = make([SamplingParams()], 10)
    with pytest.raises(ValueError, match=r"\[1, 10\]"):
        sampler.sample(torch.zeros(1, 11), [0], [np.array([1])], [1])


def test_an_empty_batch() -> None:
    assert make([SamplingParams()], 10).sample(torch.zeros(0, 10), [], [], []) == []


def test_a_row_forgets_its_last_sequence() -> None:
    logits, tokens = batch(1, 200)
    sampler = make([EVERYTHING], 200)
    sampler.start(0, SamplingParams())
    fresh = make([SamplingParams()], 200)
    assert sampler.sample(logits, [0], tokens, [5]) == fresh.sample(logits, [0], tokens, [5])
