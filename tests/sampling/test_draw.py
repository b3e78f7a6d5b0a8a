"""Drawing a token: the distribution, the edges, and what rounding does to it."""

import numpy as np
import pytest
import torch

from tiercel.sampling.draw import draw, noise
from tiercel.sampling.philox import key_schedule


def gumbels(seed: int, positions: list[int], vocab_size: int) -> np.ndarray:
    schedules = np.repeat(key_schedule(seed)[:, :, None], len(positions), axis=-1)
    return noise(schedules, positions, vocab_size)


def logprobs_of(logits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(logits.astype(np.float32)).log_softmax(-1)


@pytest.mark.parametrize("vocab_size", [1, 2, 255, 256, 257, 1_000])
def test_draws_follow_the_distribution(vocab_size: int) -> None:
    n = 20_000
    row = logprobs_of(np.random.default_rng(2).normal(0, 1.5, vocab_size))
    ids = draw(row.expand(n, -1), gumbels(11, list(range(n)), vocab_size))
    wanted = row.exp().double().numpy() * n
    counts = np.bincount(ids, minlength=vocab_size)
    often = wanted > 5
    chi_square = float(((counts[often] - wanted[often]) ** 2 / wanted[often]).sum())
    freedom = int(often.sum())
    # Mean k, deviation sqrt(2k): five deviations. The draws are fixed.
    assert chi_square <= freedom + 5 * (2 * freedom) ** 0.5
    assert abs(counts[~often].sum() - wanted[~often].sum()) <= 5 * n**0.5


def test_what_has_no_mass_is_never_drawn() -> None:
    vocab_size = 1_000
    row = np.full(vocab_size, -np.inf)
    row[[0, 499, 999]] = 0.0
    ids = draw(logprobs_of(row).expand(3_000, -1), gumbels(3, list(range(3_000)), vocab_size))
    assert set(ids.tolist()) == {0, 499, 999}


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    rows = logprobs_of(np.random.default_rng(4).normal(0, 2, (7, 65_024)))
    gumbel = gumbels(5, list(range(7)), 65_024)
    together = draw(rows, gumbel).tolist()
    assert together == [int(draw(rows[i : i + 1], gumbel[i : i + 1])[0]) for i in range(7)]


@pytest.mark.parametrize(("vocab_size", "often"), [(4_096, 0.02), (65_024, 0.02)])
def test_rounding_hardly_ever_draws_another_token(vocab_size: int, often: float) -> None:
    """Logits as bfloat16 leaves them: with the cumulative mass, it was 14% and 37%."""
    random = np.random.default_rng(6)
    n = 400
    logits = random.normal(0, 2.5, (n, vocab_size))
    logits[np.arange(n)[:, None], random.integers(0, vocab_size, (n, 5))] += random.uniform(
        4, 10, (n, 5)
    )
    gumbel = gumbels(8, list(range(n)), vocab_size)
    exact = draw(logprobs_of(logits), gumbel)
    rounded = draw(logprobs_of(logits + 0.005 * random.normal(0, 1, logits.shape)), gumbel)
    assert (exact != rounded).mean() <= often


def test_rows_that_are_no_numbers_stay_in_range() -> None:
    rows = torch.full((2, 1_000), torch.nan)
    assert (draw(rows, gumbels(1, [0, 1], 1_000)) < 1_000).all()
