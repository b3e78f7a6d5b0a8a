"""The linear layer of few rows against the specification. Widths are true, outputs few: more of
them only repeat the program."""

import pytest
import torch

from support.kernels import DEVICE, DTYPES, HALVES, Allocations, assert_close, normal
from tiercel_kernels.fused.skinny_linear import multiply, skinny_linear
from tiercel_kernels.linear_cases import PUBLISHED as LAYERS
from tiercel_kernels.reference import skinny_linear as reference
from tiercel_kernels.tuning.skinny_linear import VARIANTS, LinearVariant, variant

DISTINCT = sorted(
    {each for shapes in VARIANTS.values() for listed in shapes.values() for each in listed},
    key=str,
)

# The widths of the published models, each with the parameters that serving has for one of them.
PUBLISHED = {each.width: variant(90, each.out, each.width, 2) for each in LAYERS}


def _inputs(
    rows: int, out: int, width: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Products that are again normally distributed."""
    x = normal(rows, width, dtype=dtype)
    weight = normal(out, width, dtype=dtype, seed=1) / width**0.5
    return x, weight, normal(out, dtype=dtype, seed=2)


# rows, out, width: of 7b, 11b, 40b, 180b, rw-1b, and awkward ones.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 64, 4544),
        (16, 40, 4096),
        (32, 33, 8192),
        (2, 32, 14848),
        (17, 48, 2048),
        (3, 7, 100),
        (5, 1, 1),
        (0, 64, 256),
    ],
    ids=str,
)
@pytest.mark.parametrize(("bias", "gelu"), [(False, False), (True, True)])
def test_grid(shape: tuple[int, int, int], bias: bool, gelu: bool, dtype: torch.dtype) -> None:
    x, weight, added = _inputs(*shape, dtype)
    out = skinny_linear(x, weight, added if bias else None, gelu)
    assert_close(out, reference.skinny_linear(x, weight, added if bias else None, gelu))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("chosen", DISTINCT, ids=str)
def test_every_variant_of_the_table(chosen: LinearVariant, dtype: torch.dtype) -> None:
    x, weight, bias = _inputs(3, chosen.block_n + 1, 1088, dtype)  # 17 x 64
    out = multiply(x, weight, bias, True, chosen)
    assert_close(out, reference.skinny_linear(x, weight, bias, True))


def test_more_splits_than_tiles() -> None:
    x, weight, _ = _inputs(2, 32, 192, torch.float32)
    out = multiply(x, weight, None, False, LinearVariant(32, 64, 8, 4, 2))
    assert_close(out, reference.skinny_linear(x, weight))


# Not in float32 in the interpreter: its dot is a library's, whose bits follow a row's place in the
# tile on some CPUs (seen on Zen 3, not on Zen 4).
@pytest.mark.parametrize("dtype", DTYPES if DEVICE.type == "cuda" else [torch.float16], ids=str)
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    x, weight, bias = _inputs(32, 32, 4544, dtype)
    together = skinny_linear(x, weight, bias, True)
    for rows in ([7], list(range(20, 7, -1))):
        assert torch.equal(skinny_linear(x[rows], weight, bias, True), together[rows])


@pytest.mark.parametrize("splits", [1, 2])
def test_nothing_beside_the_output_is_written(splits: int) -> None:
    """Nor beside the sums of the splits."""
    x, weight, bias = _inputs(5, 33, 256, torch.float32)
    with Allocations() as made:
        out = multiply(x, weight, bias, True, LinearVariant(32, 64, splits, 4, 2))
    assert made.intact()
    assert_close(out, reference.skinny_linear(x, weight, bias, True))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("width", "chosen"), PUBLISHED.items(), ids=PUBLISHED)
def test_published_widths(width: int, chosen: LinearVariant, dtype: torch.dtype) -> None:
    """With the parameters that serving has for them."""
    x, weight, bias = _inputs(2, 5, width, dtype)
    out = multiply(x, weight, bias, True, chosen)
    assert_close(out, reference.skinny_linear(x, weight, bias, True))


def test_a_variant_depends_on_card_and_weight_only() -> None:
    assert variant(90, 4672, 4544, 2) == VARIANTS[90][4672, 4544][0]
    assert variant(89, 4672, 4544, 2) == VARIANTS[86][4672, 4544][0]  # the nearest older card
    # Those of 80 want more shared memory than Turing has.
    assert variant(75, 4672, 4544, 2).block_k == 32 < VARIANTS[80][4672, 4544][0].block_k
    assert variant(90, 64, 16384, 2).split_k > variant(90, 65024, 4544, 2).split_k == 1


def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias = _inputs(33, 16, 64, torch.float32)
    with pytest.raises(ValueError, match="33 rows"):
        skinny_linear(x, weight)
    with pytest.raises(ValueError, match="do not fit"):
        skinny_linear(x[:2, :32], weight)
    with pytest.raises(ValueError, match="float16"):
        skinny_linear(x[:2].half(), weight)
    with pytest.raises(ValueError, match="bias is"):
        skinny_linear(x[:2], weight, bias[:3])
    with pytest.raises(ValueError, match="contiguous"):
        skinny_linear(x[:2], weight.T.contiguous().T)
