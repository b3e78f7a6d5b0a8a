"""The sampler against the specification, which sorts, and that against the server's sampler."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from support.kernels import DEVICE, DTYPES, Allocations, normal
from tiercel.sampling.sampler import Sampler
from tiercel.wire.request import SamplingParams
from tiercel.wire.step import SampledToken
from tiercel_kernels.fused.sample import _noise, sample
from tiercel_kernels.reference import sample as reference
from tiercel_kernels.reference.philox import noise, philox
from tiercel_kernels.reference.sample import SampleParams

# temperature, top_k, top_p, typical_p, draws
GREEDY = (1.0, 0, 1.0, 1.0, 0)
DRAW = (1.0, 0, 1.0, 1.0, 1)
KINDS: list[tuple[float, int, float, float, int]] = [
    GREEDY,
    (0.5, 0, 1.0, 1.0, 0),
    DRAW,
    (0.7, 0, 1.0, 1.0, 1),
    (1.0, 50, 1.0, 1.0, 1),
    (1.0, 1, 1.0, 1.0, 1),
    (1.5, 0, 0.9, 1.0, 1),
    (1.0, 0, 0.001, 1.0, 1),
    (2.0, 0, 1.0, 0.6, 1),
    (1.0, 0, 1.0, 0.3, 0),
    (1.2, 40, 0.8, 0.7, 1),
    (1.0, 10**6, 0.99, 1.0, 1),
    (1e-6, 0, 1.0, 1.0, 1),
]


def _params(rows: list[tuple[float, int, float, float, int]], start: int = 0) -> SampleParams:
    """Seeds beyond 2^63 and positions beyond 2^32 among them."""
    temperature, top_k, top_p, typical_p, draws = zip(*rows, strict=True)
    number = torch.arange(start, start + len(rows))
    columns = [
        torch.tensor(temperature, dtype=torch.float32),
        torch.tensor(top_k, dtype=torch.int32),
        torch.tensor(top_p, dtype=torch.float64),
        torch.tensor(typical_p, dtype=torch.float64),
        torch.tensor(draws, dtype=torch.int32),
        number * 0x9E3779B97F4A7C1 - 77,
        number * 0x40000123,
    ]
    return SampleParams(*(each.to(DEVICE) for each in columns))


def _rows(params: SampleParams, rows: list[int]) -> SampleParams:
    return SampleParams(*(getattr(params, field.name)[rows] for field in fields(params)))


def _same(logits: torch.Tensor, params: SampleParams) -> None:
    kept = logits.clone()
    with Allocations() as made:
        ids, logprobs = sample(logits, params)
    assert made.intact()
    expected, expected_logprobs = reference.sample(logits, params)
    assert ids.tolist() == expected.tolist()
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-6, atol=2e-5, equal_nan=True)
    assert torch.equal(logits, kept)


@pytest.mark.parametrize(
    ("vocab", "dtype"), [(4096, torch.float32), (7, torch.float32), *((1000, d) for d in DTYPES)]
)
def test_grid(vocab: int, dtype: torch.dtype) -> None:
    _same(normal(len(KINDS), vocab, dtype=dtype) * 3, _params(KINDS))


@pytest.mark.parametrize("kinds", [[GREEDY, DRAW], [KINDS[10]]], ids=["plain", "all"])
def test_falcons_vocabulary(kinds: list[tuple[float, int, float, float, int]]) -> None:
    _same(normal(len(kinds), 65024, dtype=torch.float32) * 3, _params(kinds))


def test_one_token_and_no_rows() -> None:
    _same(normal(2, 1, dtype=torch.float32), _params([DRAW, KINDS[10]]))
    ids, logprobs = sample(normal(0, 10, dtype=torch.float32), _rows(_params(KINDS), []))
    assert ids.shape == logprobs.shape == (0,)


@pytest.mark.parametrize("p", [0.07, 0.33, 0.52, 0.97])
def test_ties_at_the_edges(p: float) -> None:
    """Few distinct logits: top-k keeps all ties, top-p the higher ids of them."""
    logits = (normal(4, 300, dtype=torch.float32) * 1.5).round()
    kinds = [(1.0, 5, 1.0, 1.0, 1), (1.0, 0, p, 1.0, 1), (1.0, 30, p, 1.0, 1), (1.0, 9, p, p, 1)]
    _same(logits, _params(kinds, start=10))


def test_masked_tokens_are_never_drawn() -> None:
    logits = normal(len(KINDS), 500, dtype=torch.float32)
    logits[:, ::2] = -torch.inf
    _same(logits, _params(KINDS))
    ids, _ = sample(logits[:3], _params(KINDS[2:5], start=50))
    assert all(each % 2 for each in ids.tolist())


def test_zeros_of_both_signs_are_equal() -> None:
    logits = torch.tensor([[-0.0, 0.0, -0.0, -1.0]], device=DEVICE)
    _same(logits, _params([(1.0, 1, 1.0, 1.0, 0)]))
    _same(logits, _params([(1.0, 1, 1.0, 1.0, 1)], 3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_row_has_no_number_and_disturbs_no_other(value: float) -> None:
    kinds = [KINDS[10], KINDS[10], DRAW, GREEDY]
    logits = normal(4, 300, dtype=torch.float32)
    expected = sample(logits, _params(kinds))
    logits[1:3, (slice(None) if value < 0 else 70)] = value
    ids, logprobs = sample(logits, _params(kinds))
    assert logprobs.isnan().tolist() == [False, True, True, False]
    for row in (0, 3):
        assert ids[row] == expected[0][row]
        assert logprobs[row] == expected[1][row]
    wanted_ids, wanted = reference.sample(logits, _params(kinds))
    assert ids.tolist() == wanted_ids.tolist()
    assert wanted.isnan().tolist() == [False, True, True, False]


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    logits, params = normal(len(KINDS), 1000, dtype=torch.float32) * 3, _params(KINDS)
    ids, logprobs = sample(logits, params)
    for rows in ([6], [10, 2, 8]):
        alone, alone_logprobs = sample(logits[rows], _rows(params, rows))
        assert torch.equal(alone, ids[rows])
        assert torch.equal(alone_logprobs, logprobs[rows])


def test_draws_follow_the_masses() -> None:
    """Of 40 draws from four tokens the counts lie within four standard deviations."""
    masses = np.array([0.1, 0.2, 0.3, 0.4])
    logits = torch.tensor(masses, dtype=torch.float32, device=DEVICE).log().repeat(40, 1)
    ids, _ = sample(logits, _params([DRAW] * 40))
    counts = np.bincount(ids.cpu().numpy(), minlength=4)
    assert (abs(counts - 40 * masses) < 4 * np.sqrt(40 * masses * (1 - masses))).all()


@triton.jit
def _noise_kernel(seed_ptr, position_ptr, out_ptr) -> None:
    row = tl.program_id(0)
    word = tl.arange(0, 512)
    numbers = _noise(tl.load(seed_ptr + row), tl.load(position_ptr + row), word)
    tl.store(out_ptr + row * 512 + word, numbers)


def test_noise_is_philox() -> None:
    """The first known answer is Random123's for a counter and a key of zeros."""
    params = _params(KINDS)
    seed, position = params.seed, params.position
    seed[0] = position[0] = 0
    out = torch.zeros(len(KINDS), 512, dtype=torch.float64, device=DEVICE)
    _noise_kernel[(len(KINDS),)](seed, position, out)
    wanted = [noise(*each, 512) for each in zip(seed.tolist(), position.tolist(), strict=True)]
    torch.testing.assert_close(out.cpu(), torch.stack(wanted), rtol=1e-13, atol=1e-13)
    assert philox([0, 0, 0, 0], 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    first = (0x6627E8D5 + 0.5) / 2**32
    assert float(out[0, 0]) == pytest.approx(-np.log(-np.log(first)), rel=1e-13)


def test_the_specification_is_the_servers() -> None:
    """The same tokens for the same seeds, as the server's sampler draws them."""
    logits, params = normal(len(KINDS), 4096, dtype=torch.float32) * 3, _params(KINDS)
    sampler = Sampler(4096, len(KINDS), watermark_gamma=0.5, watermark_delta=2.0)
    rows = list(range(len(KINDS)))
    for row, (temperature, top_k, top_p, typical_p, draws) in enumerate(KINDS):
        options: dict[str, Any] = {"seed": int(params.seed[row]) % 2**64, "do_sample": bool(draws)}
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        sampler.start(row, SamplingParams(**options, typical_p=typical_p))
    positions = params.position.tolist()
    nothing = [np.zeros(0, dtype=np.int64)] * len(KINDS)
    expected = sampler.sample(logits.cpu(), rows, nothing, positions)
    ids, logprobs = reference.sample(logits, params)
    for token, logprob, wanted in zip(ids.tolist(), logprobs.tolist(), expected, strict=True):
        assert isinstance(wanted, SampledToken)
        assert token == wanted.token_id
        assert logprob == pytest.approx(wanted.logprob, abs=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    logits, params = normal(2, 10, dtype=torch.float32), _params([DRAW, DRAW])
    with pytest.raises(ValueError, match="temperature must be"):
        sample(logits[:1], params)
    with pytest.raises(ValueError, match="vocabulary contiguous"):
        sample(logits.T.contiguous().T, params)
