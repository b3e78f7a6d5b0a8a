"""4 bits: writing out and the linear layer of few rows against the specification, both tables, with
and without nested statistics. The specification against bitsandbytes: tests/quantization.
"""

from dataclasses import replace

import pytest
import torch

from support.kernels import DEVICE, DTYPES, HALVES, Allocations, assert_close, normal
from tiercel_kernels.fused.nf4_dequantize import nf4_dequantize
from tiercel_kernels.fused.nf4_linear import multiply, nf4_linear
from tiercel_kernels.linear_cases import PUBLISHED as LAYERS
from tiercel_kernels.reference import nf4_dequantize as dequantize_reference
from tiercel_kernels.reference import nf4_linear as reference
from tiercel_kernels.reference.nf4_dequantize import FourBitWeight
from tiercel_kernels.tuning.nf4_linear import VARIANTS, variant
from tiercel_kernels.tuning.skinny_linear import LinearVariant

DISTINCT = sorted(
    {each for shapes in VARIANTS.values() for listed in shapes.values() for each in listed},
    key=str,
)

# The widths of the published models, each with the parameters that serving has for one of them. A
# tile takes 24 ms in the interpreter: the longest row has few and long ones.
PUBLISHED = {each.width: variant(90, each.out, each.width, 2) for each in LAYERS}
PUBLISHED[59392] = replace(PUBLISHED[59392], block_k=256)


def weight_of(out: int, width: int, *, nested: bool = False, kind: str = "nf4") -> FourBitWeight:
    """Random bytes; a table in no order stands for fp4. The variance is about 1 / width."""
    generator = torch.Generator().manual_seed(out + width)
    codes = torch.randint(0, 256, (out * width // 2,), generator=generator, dtype=torch.uint8)
    table = torch.linspace(-1.7, 1.7, 16) / width**0.5
    if kind == "fp4":
        table = table[torch.randperm(16, generator=generator)]
    blocks = out * width // 64
    parts: tuple[torch.Tensor, ...] = (codes, table)
    if not nested:
        absmax = torch.rand(blocks, generator=generator) + 0.5
        codes, table, absmax = (part.to(DEVICE) for part in (*parts, absmax))
        return FourBitWeight(codes, table, absmax, out, width)
    inner = torch.randint(0, 256, (blocks,), generator=generator, dtype=torch.uint8)
    outer = torch.rand(-(-blocks // 256), generator=generator)
    parts = (*parts, inner, outer, torch.linspace(-1, 1, 256))
    codes, table, inner, outer, values = (part.to(DEVICE) for part in parts)
    return FourBitWeight(codes, table, inner, out, width, outer, values, 1.25)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(33, 4544), (64, 128), (1, 64), (300, 192)], ids=str)
def test_written_out(shape: tuple[int, int], kind: str, nested: bool, dtype: torch.dtype) -> None:
    weight = weight_of(*shape, nested=nested, kind=kind)
    room = torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)
    out = nf4_dequantize(weight, room)
    assert out is room
    expected = dequantize_reference.nf4_dequantize(weight, torch.empty_like(room))
    if nested:  # a multiplication and an addition may be one operation there
        torch.testing.assert_close(
            out, expected, rtol=4e-3 if dtype.itemsize == 2 else 1e-6, atol=0
        )
    else:
        assert torch.equal(out, expected)


def test_nothing_beside_the_weight_is_written() -> None:
    weight = weight_of(3, 192)
    with Allocations() as made:
        out = nf4_dequantize(weight, torch.empty(3, 192, device=DEVICE))
    assert made.intact()
    assert torch.equal(out, dequantize_reference.nf4_dequantize(weight, torch.empty_like(out)))


def test_a_weight_goes_only_where_it_fits() -> None:
    with pytest.raises(ValueError, match=r"out is \[192, 3\]"):
        nf4_dequantize(weight_of(3, 192), torch.empty(192, 3, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 64, 4544),
        (32, 33, 2048),
        (17, 40, 1088),
        (3, 7, 192),
        (5, 1, 64),
        (0, 64, 256),
    ],
    ids=str,
)
def test_grid(shape: tuple[int, int, int], kind: str, nested: bool, dtype: torch.dtype) -> None:
    rows, out, width = shape
    x, weight = normal(rows, width, dtype=dtype), weight_of(out, width, nested=nested, kind=kind)
    bias = normal(out, dtype=dtype, seed=2)
    for some, gelu in ((None, False), (bias, True)):
        y = nf4_linear(x, weight, some, gelu)
        assert_close(y, reference.nf4_linear(x, weight, some, gelu))


@pytest.mark.parametrize("chosen", DISTINCT, ids=str)
def test_every_variant_of_the_table(chosen: LinearVariant) -> None:
    width = 1088  # 17 x 64
    x = normal(3, width, dtype=torch.float16)
    weight = weight_of(chosen.block_n + 1, width, nested=True)
    bias = normal(weight.out, dtype=torch.float16, seed=2)
    out = multiply(x, weight, bias, True, chosen)
    assert_close(out, reference.nf4_linear(x, weight, bias, True))


def test_more_splits_than_tiles() -> None:
    x, weight = normal(2, 192, dtype=torch.float32), weight_of(32, 192)
    out = multiply(x, weight, None, False, LinearVariant(32, 64, 8, 4, 2))
    assert_close(out, reference.nf4_linear(x, weight))


# Not in float32 in the interpreter: its dot is a library's, whose bits follow a row's place.
@pytest.mark.parametrize("dtype", DTYPES if DEVICE.type == "cuda" else [torch.float16], ids=str)
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    x, weight = normal(32, 4544, dtype=dtype), weight_of(32, 4544, nested=True)
    bias = normal(32, dtype=dtype, seed=2)
    together = nf4_linear(x, weight, bias, True)
    for rows in ([7], list(range(20, 7, -1))):
        assert torch.equal(nf4_linear(x[rows], weight, bias, True), together[rows])


@pytest.mark.parametrize("splits", [1, 2])
def test_nothing_beside_the_output_is_written(splits: int) -> None:
    """Nor beside the sums of the splits."""
    x, weight = normal(5, 256, dtype=torch.float32), weight_of(33, 256)
    bias = normal(33, dtype=torch.float32, seed=2)
    with Allocations() as made:
        out = multiply(x, weight, bias, True, LinearVariant(32, 64, splits, 4, 2))
    assert made.intact()
    assert_close(out, reference.nf4_linear(x, weight, bias, True))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("width", "chosen"), PUBLISHED.items(), ids=PUBLISHED)
def test_published_widths(width: int, chosen: LinearVariant, dtype: torch.dtype) -> None:
    """With the parameters that serving has for them; few outputs repeat the program less."""
    x, bias = normal(2, width, dtype=dtype), normal(5, dtype=dtype, seed=2)
    weight = weight_of(5, width, nested=width % 128 == 0)
    out = multiply(x, weight, bias, True, chosen)
    assert_close(out, reference.nf4_linear(x, weight, bias, True))


def test_a_variant_depends_on_card_and_weight_only() -> None:
    assert variant(90, 4672, 4544, 2) == VARIANTS[90][4672, 4544][0]
    assert variant(89, 4672, 4544, 2) == VARIANTS[86][4672, 4544][0]  # the nearest older card
    assert variant(90, 64, 16384, 2).split_k > variant(90, 65024, 4544, 2).split_k == 1
    assert all(each.block_k % 64 == 0 for each in DISTINCT)


def test_what_does_not_fit_is_refused() -> None:
    weight = weight_of(16, 64)
    x, bias = normal(33, 64, dtype=torch.float32), normal(3, dtype=torch.float32)
    with pytest.raises(ValueError, match="33 rows"):
        nf4_linear(x, weight)
    with pytest.raises(ValueError, match="do not fit"):
        nf4_linear(x[:2, :32], weight)
    with pytest.raises(ValueError, match="bias is"):
        nf4_linear(x[:2], weight, bias)
    with pytest.raises(ValueError, match="not a multiple of 64"):
        FourBitWeight(weight.codes, weight.table, weight.absmax, 64, 16)
    with pytest.raises(ValueError, match="codes is"):
        FourBitWeight(weight.codes[1:], weight.table, weight.absmax, 16, 64)
    with pytest.raises(ValueError, match="absmax is"):
        FourBitWeight(weight.codes, weight.table, weight.absmax[1:], 16, 64)
    with pytest.raises(ValueError, match="nested statistics need 1 absmax"):
        absmax = weight.absmax.to(torch.uint8)
        FourBitWeight(weight.codes, weight.table, absmax, 16, 64, weight.absmax, weight.table)
