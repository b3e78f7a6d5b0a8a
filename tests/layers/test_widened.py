"""16-bit layers that multiply in float32: the exact product, rounded once."""

import pytest
import torch
from torch.nn import functional

from tiercel.layers.half import HalfLinear, fbgemm_has_half, fits_half
from tiercel.layers.linear import Linear, PlainLinear
from tiercel.layers.widened import (
    CHUNK_NUMBERS,
    Scratch,
    WidenedLinear,
    chunk_rows,
    decoding_dtype,
)
from tiercel.quantization import unquantized


def widened(weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False) -> Linear:
    return WidenedLinear(weight, bias, Scratch(), gelu=gelu)


def half(weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False) -> Linear:
    if not fbgemm_has_half():
        pytest.skip("FBGEMM has no half-float GEMM on this machine")
    return HalfLinear(weight, bias, gelu=gelu)


MAKE = {"widened": widened, "half": half}


@pytest.mark.parametrize("rows", [2, 16])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(7, 48), (3000, 700), (2, CHUNK_NUMBERS + 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", MAKE)
def test_is_rounded_once(
    kind: str, dtype: torch.dtype, shape: tuple[int, int], gelu: bool, rows: int
) -> None:
    torch.manual_seed(rows)
    weight = (torch.randn(shape) / shape[1] ** 0.5).to(dtype)
    bias = torch.randn(shape[0]).to(dtype)
    x = torch.randn(rows, shape[1]).to(dtype)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    exact = functional.gelu(exact) if gelu else exact
    found = MAKE[kind](weight, bias, gelu=gelu)(x)
    assert found.dtype is dtype
    half_a_step = torch.finfo(dtype).eps / 2
    allowed = exact.abs() * half_a_step + 2e-5  # and float32's own sums
    assert ((found.double() - exact).abs() <= allowed).all()


def test_layers_share_the_scratch() -> None:
    """Nothing of one layer's parts is left in another's result."""
    scratch = Scratch()
    torch.manual_seed(0)
    weights = [torch.randn(40, 30).bfloat16(), torch.randn(5, 30).bfloat16()]
    x = torch.randn(3, 30).bfloat16()
    alone = [WidenedLinear(weight, None, Scratch())(x) for weight in weights]
    shared = [WidenedLinear(weight, None, scratch) for weight in weights]
    for _ in range(2):
        for layer, expected in zip(shared, alone, strict=True):
            assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(("limit", "most"), [("PACKED_ROWS", 12), ("PACKED_NUMBERS", 64 * 12)])
def test_half_in_parts_is_half_in_one(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    weight, bias = torch.randn(50, 64).bfloat16(), torch.randn(50).bfloat16()
    x = torch.randn(3, 64).bfloat16()
    whole = half(weight, bias, gelu=True)
    monkeypatch.setattr(f"tiercel.layers.half.{limit}", most)
    parts = half(weight, bias, gelu=True)
    assert torch.equal(parts(x), whole(x))
    assert parts.nbytes == whole.nbytes == 50 * 512 * 2 + bias.nbytes


def test_numbers_beyond_half_are_not_for_it() -> None:
    weight = torch.full((2, 768), 65_000.0)
    assert fits_half(weight)
    weight[1, 5] = -70_000.0
    assert not fits_half(weight.bfloat16())


def test_half_does_not_fill_memory_with_zeros() -> None:
    assert not fits_half(torch.ones(5000, 600))
    assert not fits_half(torch.ones(10_000, 1))
    assert fits_half(torch.ones(1000, 4544))


def test_small_weights_may_grow() -> None:
    assert fits_half(torch.ones(4000, 600))


@pytest.mark.parametrize("rows", [1, 2])
def test_one_row_of_a_small_weight_goes_through_torchs_own_product(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    if not fbgemm_has_half():
        pytest.skip("FBGEMM has no half-float GEMM on this machine")
    monkeypatch.setattr(unquantized, "onednn_has", lambda dtype: False)
    weight, bias = torch.randn(24, 64).bfloat16(), torch.randn(24).bfloat16()
    layer = unquantized.Unquantized(torch.bfloat16).build(weight, bias, gelu=True)
    x = torch.randn(rows, 64).bfloat16()
    ways = [PlainLinear(weight, bias, gelu=True), HalfLinear(weight, bias, gelu=True)]
    assert torch.equal(layer(x), ways[min(rows, 2) - 1](x))
    assert layer.nbytes == sum(each.nbytes for each in ways)
    monkeypatch.setattr(unquantized, "ONE_ROW_NUMBERS", 24 * 64 - 1)
    alone = unquantized.Unquantized(torch.bfloat16).build(weight, bias, gelu=True)
    assert isinstance(alone, HalfLinear)


@pytest.mark.parametrize("kind", MAKE)
def test_one_row_is_close_to_many(kind: str) -> None:
    weight = torch.randn(64, 256).bfloat16()
    layer = MAKE[kind](weight, None)
    x = torch.randn(4, 256).bfloat16()
    many = layer(x)
    for i in range(4):
        torch.testing.assert_close(layer(x[i : i + 1]), many[i : i + 1], rtol=2e-2, atol=0.1)


@pytest.mark.parametrize(("out", "width"), [(1, 1), (4096, 4096), (7, 1 << 21), (65024, 4544)])
def test_chunks_cover_every_row_once(out: int, width: int) -> None:
    rows = [row for first, last in chunk_rows(out, width) for row in range(first, last)]
    assert rows == list(range(out))


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        ("AVX2", torch.bfloat16, torch.bfloat16),
        ("AVX2", torch.float16, torch.float32),
        ("AVX2", torch.float32, torch.float32),
        ("AVX512", torch.bfloat16, torch.float32),
        ("DEFAULT", torch.bfloat16, torch.float32),
    ],
)
def test_single_tokens_attend_in_bfloat16_where_mkl_has_products_for_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, dtype: torch.dtype, expected: torch.dtype
) -> None:
    """On a CPU whose oneDNN has neither of the 16-bit types."""
    monkeypatch.setattr("tiercel.layers.widened.onednn_has", lambda dtype: dtype is torch.float32)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert decoding_dtype(dtype) is expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert decoding_dtype(dtype) is torch.float32
