"""The int8 linear layer of few rows against the specification."""

import pytest
import torch

from support.kernels import DEVICE, DTYPES, HALVES, Allocations, assert_close, normal
from tiercel_kernels.fused.int8_linear import int8_linear, multiply
from tiercel_kernels.linear_cases import PUBLISHED as LAYERS
from tiercel_kernels.reference import int8_linear as reference
from tiercel_kernels.tuning.int8_linear import VARIANTS, variant
from tiercel_kernels.tuning.skinny_linear import LinearVariant

DISTINCT = sorted(
    {each for shapes in VARIANTS.values() for listed in shapes.values() for each in listed},
    key=str,
)

# The widths of the published models, each with the parameters that serving has for one of them.
PUBLISHED = {each.width: variant(90, each.out, each.width, 2) for each in LAYERS}


def inputs(
    rows: int, out: int, width: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, codes, absmax and bias, so that products are again normally distributed."""
    x = normal(rows, width, dtype=dtype)
    weight = normal(out, width, dtype=torch.float32, seed=1) / width**0.5
    absmax = weight.abs().amax(1)
    codes = (weight * (127.0 / absmax[:, None])).round().to(torch.int8)
    return x, codes, absmax, normal(out, dtype=dtype, seed=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 64, 4544),
        (16, 40, 4096),
        (32, 33, 8192),
        (17, 48, 2048),
        (3, 7, 100),
        (5, 1, 1),
        (0, 64, 256),
    ],
    ids=str,
)
@pytest.mark.parametrize(("bias", "gelu"), [(False, False), (True, True)])
def test_grid(shape: tuple[int, int, int], bias: bool, gelu: bool, dtype: torch.dtype) -> None:
    x, codes, absmax, added = inputs(*shape, dtype)
    some = added if bias else None
    out = int8_linear(x, codes, absmax, some, gelu)
    assert_close(out, reference.int8_linear(x, codes, absmax, some, gelu))


@pytest.mark.parametrize("chosen", DISTINCT, ids=str)
def test_every_variant_of_the_table(chosen: LinearVariant) -> None:
    x, codes, absmax, bias = inputs(3, chosen.block_n + 1, 1088, torch.float16)  # 17 x 64
    out = multiply(x, codes, absmax, bias, True, chosen)
    assert_close(out, reference.int8_linear(x, codes, absmax, bias, True))


def test_more_splits_than_tiles() -> None:
    x, codes, absmax, _ = inputs(2, 32, 192, torch.float32)
    out = multiply(x, codes, absmax, None, False, LinearVariant(32, 64, 8, 4, 2))
    assert_close(out, reference.int8_linear(x, codes, absmax))


def test_the_largest_codes_are_exact() -> None:
    codes = torch.tensor([[127, -127, -128, 1]], dtype=torch.int8).repeat(16, 16).to(DEVICE)
    x = torch.ones(2, 64, dtype=torch.float16, device=DEVICE)
    out = int8_linear(x, codes, torch.full((16,), 127.0, device=DEVICE))
    assert (out == 16 * (127 - 127 - 128 + 1)).all()


# Not in float32 in the interpreter: its dot is a library's, whose bits follow a row's place.
@pytest.mark.parametrize("dtype", DTYPES if DEVICE.type == "cuda" else [torch.float16], ids=str)
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    x, codes, absmax, bias = inputs(32, 32, 4544, dtype)
    together = int8_linear(x, codes, absmax, bias, True)
    for rows in ([7], list(range(20, 7, -1))):
        assert torch.equal(int8_linear(x[rows], codes, absmax, bias, True), together[rows])


@pytest.mark.parametrize("splits", [1, 2])
def test_nothing_beside_the_output_is_written(splits: int) -> None:
    """Nor beside the sums of the splits."""
    x, codes, absmax, bias = inputs(5, 33, 256, torch.float32)
    with Allocations() as made:
        out = multiply(x, codes, absmax, bias, True, LinearVariant(32, 64, splits, 4, 2))
    assert made.intact()
    assert_close(out, reference.int8_linear(x, codes, absmax, bias, True))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("width", "chosen"), PUBLISHED.items(), ids=PUBLISHED)
def test_published_widths(width: int, chosen: LinearVariant, dtype: torch.dtype) -> None:
    """With the parameters that serving has for them; few outputs repeat the program less."""
    x, codes, absmax, bias = inputs(2, 5, width, dtype)
    out = multiply(x, codes, absmax, bias, True, chosen)
    assert_close(out, reference.int8_linear(x, codes, absmax, bias, True))


def test_a_variant_depends_on_card_and_weight_only() -> None:
    assert variant(90, 4672, 4544, 2) == VARIANTS[90][4672, 4544][0]
    assert variant(89, 4672, 4544, 2) == VARIANTS[86][4672, 4544][0]  # the nearest older card
    # Those of 80 want more shared memory than Turing has.
    assert variant(75, 4672, 4544, 2).block_k == 32 < VARIANTS[80][4672, 4544][0].block_k
    assert variant(90, 64, 16384, 2).split_k > variant(90, 65024, 4544, 2).split_k == 1


def test_what_does_not_fit_is_refused() -> None:
    x, codes, absmax, bias = inputs(33, 16, 64, torch.float32)
    with pytest.raises(ValueError, match="33 rows"):
        int8_linear(x, codes, absmax)
    with pytest.raises(ValueError, match="do not fit"):
        int8_linear(x[:2, :32], codes, absmax)
    with pytest.raises(ValueError, match="must be contiguous int8"):
        int8_linear(x[:2], codes.to(torch.uint8), absmax)
    with pytest.raises(ValueError, match="absmax is"):
        int8_linear(x[:2], codes, absmax[:3])
    with pytest.raises(ValueError, match="bias is"):
        int8_linear(x[:2], codes, absmax, bias[:3])
