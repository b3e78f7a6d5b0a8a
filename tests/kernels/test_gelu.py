"""The exact GELU against the specification, and against the error function in float64."""

import pytest
import torch

from support.kernels import DEVICE, DTYPES, Allocations, assert_close, normal
from tiercel_kernels.fused.gelu import gelu
from tiercel_kernels.reference import gelu as reference

# MLPs of 7b, 11b, 40b, 180b and rw-1b, and awkward ones.
COLUMNS = [18176, 16384, 32768, 59392, 8192, 1000, 1025, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("columns", "biased"), [(n, i % 2 == 0) for i, n in enumerate(COLUMNS)])
def test_grid(columns: int, biased: bool, dtype: torch.dtype) -> None:
    x = normal(2, columns, dtype=dtype) * 2
    bias = normal(columns, dtype=dtype, seed=1) if biased else None
    kept = x.clone()
    assert_close(gelu(x, bias), reference.gelu(x, bias))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_rows(rows: int) -> None:
    x = normal(rows, 300, dtype=torch.float32)
    assert_close(gelu(x), reference.gelu(x))


def test_it_is_the_exact_one() -> None:
    """The tanh form differs by up to 5e-4."""
    x = torch.linspace(-6, 6, 2001, device=DEVICE).unsqueeze(0)
    exact = 0.5 * x.double() * (1 + torch.erf(x.double() / 2**0.5))
    torch.testing.assert_close(gelu(x).double(), exact, rtol=0, atol=1e-6)


def test_extremes() -> None:
    x = torch.tensor([[torch.inf, -1e30, 1e30, 0.0, -0.0]], device=DEVICE)
    assert gelu(x).tolist() == [[torch.inf, 0.0, float(x[0, 2]), 0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    x = normal(5, 4544, dtype=dtype)
    assert torch.equal(gelu(x)[[1, 4]], gelu(x[[1, 4]]))


def test_nothing_beside_the_rows_is_written() -> None:
    x = normal(3, 1025, dtype=torch.float32)
    with Allocations() as made:
        out = gelu(x)
    assert made.intact()
    assert_close(out, reference.gelu(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_into_a_part_of_wider_rows(dtype: torch.dtype) -> None:
    x, bias = normal(3, 1025, dtype=dtype), normal(1025, dtype=dtype, seed=1)
    wide = torch.full((3, 2000), 7.0, dtype=dtype, device=DEVICE)
    part = wide[:, 40:1065]
    assert gelu(x, bias, part) is part
    assert_close(part, reference.gelu(x, bias))
    assert torch.equal(reference.gelu(x, bias, part), reference.gelu(x, bias))
    assert (wide[:, :40] == 7).all() and (wide[:, 1065:] == 7).all()


def test_what_does_not_fit_is_refused() -> None:
    x = normal(2, 8, dtype=torch.float32)
    with pytest.raises(ValueError, match="must be"):
        gelu(x[0])
    with pytest.raises(ValueError, match="8 columns"):
        gelu(x, x[0, :4])
    with pytest.raises(ValueError, match="out must be"):
        gelu(x, None, x.new_empty(3, 8))
