"""The residual sum and its norms against the specification, and that against torch."""

import pytest
import torch

from support.kernels import DTYPES, Allocations, assert_close, normal
from tiercel_kernels.fused.residual_norm import residual_norm
from tiercel_kernels.reference import residual_norm as reference

EPS = 1e-5
# hidden, branches, norms: 7b and its first layer, 11b, rw-1b, 40b, 180b, and awkward ones.
SHAPES = [
    (4544, 2, 1),
    (4544, 0, 1),
    (4096, 1, 1),
    (2048, 1, 1),
    (8192, 2, 2),
    (14848, 2, 2),
    (1000, 0, 2),
    (65, 2, 2),
    (2, 1, 2),
]


def _inputs(
    rows: int, hidden: int, branches: int, norms: int, dtype: torch.dtype
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], tuple[reference.Norm, ...]]:
    x = normal(rows, hidden, dtype=dtype) * 3 + 1
    added = tuple(normal(rows, hidden, dtype=dtype, seed=i + 1) for i in range(branches))
    weights = [normal(2, hidden, dtype=dtype, seed=i + 9) / 4 for i in range(norms)]
    return x, added, tuple((1 + each[0], each[1]) for each in weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_grid(rows: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, branches, norms = _inputs(rows, *shape, dtype)
    kept = [each.clone() for each in (x, *branches)]
    total, normed = residual_norm(x, branches, norms, EPS)
    expected, expected_normed = reference.residual_norm(x, branches, norms, EPS)
    assert torch.equal(total, expected)  # a sum of three in float32 has one order
    assert len(normed) == len(norms)
    for out, wanted in zip(normed, expected_normed, strict=True):
        assert_close(out, wanted)
    assert all(torch.equal(*pair) for pair in zip(kept, (x, *branches), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    x, branches, norms = _inputs(6, 4544, 2, 2, dtype)
    _, together = residual_norm(x, branches, norms, EPS)
    for rows in ([3], [5, 3], [0, 1, 3]):
        _, apart = residual_norm(x[rows], tuple(each[rows] for each in branches), norms, EPS)
        for one, all_of_them in zip(apart, together, strict=True):
            assert torch.equal(one, all_of_them[rows])


@pytest.mark.parametrize("hidden", [4544, 1000, 14848])
def test_nothing_beside_the_rows_is_written(hidden: int) -> None:
    x, branches, norms = _inputs(3, hidden, 2, 2, torch.float32)
    with Allocations() as made:
        total, _ = residual_norm(x, branches, norms, EPS)
    assert made.intact()
    assert torch.equal(total, reference.residual_norm(x, branches, norms, EPS)[0])


def test_no_rows() -> None:
    x, branches, norms = _inputs(0, 4544, 2, 2, torch.float32)
    total, normed = residual_norm(x, branches, norms, EPS)
    assert total.shape == normed[0].shape == normed[1].shape == (0, 4544)


def test_a_large_mean_costs_no_digits() -> None:
    """Mean of squares minus square of mean would lose all of them."""
    x, _, norms = _inputs(2, 4096, 0, 1, torch.float32)
    _, (out,) = residual_norm(x + 1000, (), norms, EPS)
    exact = torch.layer_norm((x + 1000).double(), [4096], *(each.double() for each in norms[0]))
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-3)


def test_the_specification_is_torchs_layer_norm() -> None:
    x, branches, norms = _inputs(3, 4544, 2, 1, torch.float32)
    total, (out,) = reference.residual_norm(x, branches, norms, EPS)
    assert_close(out, torch.layer_norm(total, [4544], *norms[0], EPS))


@pytest.mark.parametrize(
    ("rows", "branches", "norms", "message"),
    [
        (2, 3, 1, "at most two branches"),
        (2, 1, 3, "one or two norms"),
        (2, 1, 0, "one or two norms"),
    ],
)
def test_what_does_not_fit_is_refused(rows: int, branches: int, norms: int, message: str) -> None:
    x, added, weights = _inputs(rows, 64, branches, norms, torch.float32)
    with pytest.raises(ValueError, match=message):
        residual_norm(x, added, weights, EPS)


def test_shapes_that_differ_are_refused() -> None:
    x, branches, norms = _inputs(2, 64, 1, 1, torch.float32)
    with pytest.raises(ValueError, match="a branch is"):
        residual_norm(x, (branches[0][:1],), norms, EPS)
    with pytest.raises(ValueError, match="hidden is 64"):
        residual_norm(x, branches, ((norms[0][0][:32], norms[0][1]),), EPS)
