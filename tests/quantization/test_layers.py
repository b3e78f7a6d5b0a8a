"""Our layers against bitsandbytes' own, for every mode, type and awkward shape."""

import pytest
import torch
from torch.nn import functional

from support.bitsandbytes_models import MODES, quantized_module
from tiercel.errors import ConfigError
from tiercel.layers import widened
from tiercel.quantization import four_bit, int8
from tiercel.quantization.method import linear_method
from tiercel.quantization.stored import StoredFourBit, StoredInt8

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# out, in: true ratios, rows that cut blocks of 64, one number.
SHAPES = [(64, 128), (320, 192), (71 * 8, 568), (192, 96), (96, 4544)]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "CHUNK_NUMBERS", 1 << 13)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, of all numbers together."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def inputs(
    shape: tuple[int, int], dtype: torch.dtype, bias: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=generator).to(dtype) / shape[1] ** 0.5
    return weight, torch.randn(shape[0], generator=generator).to(dtype) if bias else None


def rows_of(count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count)).to(dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("bias", "gelu"), [(False, False), (True, True)])
@pytest.mark.parametrize(("quantize", "double_quant"), MODES, ids=str)
def test_parity(
    quantize: str,
    double_quant: bool,
    bias: bool,
    gelu: bool,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    weight, added = inputs(shape, dtype, bias)
    layer = linear_method(quantize, dtype, double_quant=double_quant).build(
        weight, added, gelu=gelu
    )
    theirs = quantized_module(quantize, weight, added, double_quant=double_quant)
    # bitsandbytes' CPU kernel takes the second nearest code for some statistics: test_bytes.py.
    tolerance = max(TOLERANCE[dtype], 1e-3) if double_quant else TOLERANCE[dtype]
    for count in (1, 3, 17, 40):
        x = rows_of(count, shape[1], dtype)
        expected = theirs(x)
        expected = functional.gelu(expected) if gelu else expected
        y = layer(x)
        assert (y.dtype, y.shape) == (dtype, (count, shape[0]))
        assert error(y, expected) < tolerance


@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_without_bitsandbytes(
    monkeypatch: pytest.MonkeyPatch, kind: str, double_quant: bool
) -> None:
    weight, bias = inputs((192, 128), torch.float32, True)
    method = linear_method(f"bitsandbytes-{kind}", torch.float32, double_quant=double_quant)
    layer, x = method.build(weight, bias), rows_of(3, 128, torch.float32)
    expected = layer(x)
    monkeypatch.setattr(four_bit, "bitsandbytes_decode", lambda: None)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("native", [False, True], ids=["float32", "bfloat16"])
def test_cpus_with_and_without_bfloat16(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """Whichever type the parts are multiplied in, and whoever multiplies few rows."""
    monkeypatch.setattr(widened, "onednn_has", lambda dtype: native)
    monkeypatch.setattr(int8, "onednn_has", lambda dtype: native)
    weight, bias = inputs((192, 128), torch.bfloat16, True)
    for quantize, double_quant in MODES:
        method = linear_method(quantize, torch.bfloat16, double_quant=double_quant)
        layer = method.build(weight, bias)
        theirs = quantized_module(quantize, weight, bias, double_quant=double_quant)
        for count in (1, 2, 9):
            x = rows_of(count, 128, torch.bfloat16)
            assert error(layer(x), theirs(x)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("native", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize(("quantize", "double_quant"), MODES, ids=str)
def test_large_results_in_float16(
    monkeypatch: pytest.MonkeyPatch, quantize: str, double_quant: bool, native: bool
) -> None:
    """Results of 500 from weights of 0.1: sums of int8 codes would be infinite."""
    monkeypatch.setattr(widened, "onednn_has", lambda dtype: native)
    weight = torch.full((192, 256), 0.1, dtype=torch.float16)
    weight[::2] *= -1
    bias = torch.full((192,), 20.0, dtype=torch.float16)
    method = linear_method(quantize, torch.float16, double_quant=double_quant)
    layer = method.build(weight, bias)
    theirs = quantized_module(quantize, weight, bias, double_quant=double_quant)
    for count in (1, 33):
        x = rows_of(count, 256, torch.float16).abs() * 25
        y = layer(x)
        assert 300 < y.abs().mean() < 800
        assert error(y, theirs(x)) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_llm_int8_is_bitsandbytes_itself(dtype: torch.dtype) -> None:
    weight, bias = inputs((320, 192), dtype, True)
    layer = linear_method("bitsandbytes-llm-int8", dtype).build(weight, bias)
    theirs = quantized_module("bitsandbytes-llm-int8", weight, bias)
    x = rows_of(9, 192, dtype)
    x[3, 50] = 60.0  # an outlier column
    assert torch.equal(layer(x), theirs(x))
    without = linear_method("bitsandbytes", dtype).build(weight, bias)
    assert 0 < error(without(x), theirs(x)) < 2e-2


@pytest.mark.parametrize("shape", [(96, 256), (96, 80)], ids=str)
@pytest.mark.parametrize(
    ("quantize", "double_quant"), [*MODES, ("bitsandbytes-llm-int8", False), (None, False)], ids=str
)
def test_rows_in_another_order(
    quantize: str | None, double_quant: bool, shape: tuple[int, int]
) -> None:
    """Moving the rows while loading is moving the columns of the result."""
    weight, bias = inputs(shape, torch.float32, True)
    method = linear_method(quantize, torch.float32, double_quant=double_quant)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(1))
    x = rows_of(7, shape[1], torch.float32)
    moved = method.build(weight, bias, gelu=True, order=order)(x)
    torch.testing.assert_close(moved, method.build(weight, bias, gelu=True)(x)[:, order])


@pytest.mark.parametrize(("quantize", "double_quant"), MODES, ids=str)
def test_memory_is_what_is_counted(quantize: str, double_quant: bool) -> None:
    weight, bias = inputs((640, 1024), torch.bfloat16, True)
    layer = linear_method(quantize, torch.bfloat16, double_quant=double_quant).build(weight, bias)
    per_weight = {False: 0.5625, True: 0.52}[double_quant] if "4" in quantize else 1.005
    assert layer.nbytes <= per_weight * weight.numel() + 2 * 640 + 1024
    before = weight.clone()
    layer(rows_of(3, 1024, torch.bfloat16))
    assert torch.equal(weight, before)  # quantizing leaves what it was given alone


@pytest.mark.parametrize(("quantize", "double_quant"), MODES, ids=str)
def test_what_is_never_quantized(quantize: str, double_quant: bool) -> None:
    weight, _ = inputs((64, 128), torch.bfloat16, False)
    method = linear_method(quantize, torch.bfloat16, double_quant=double_quant)
    x = rows_of(3, 128, torch.bfloat16)
    plain = linear_method(None, torch.bfloat16).build(weight, None)
    assert torch.equal(method.plain.build(weight, None)(x), plain(x))


def test_weights_of_another_mode_are_refused() -> None:
    weight, _ = inputs((64, 128), torch.float32, False)
    eight = StoredInt8.quantize(weight)
    four = StoredFourBit.quantize(weight, "fp4", double_quant=False)
    for quantize, stored in (
        ("bitsandbytes", four), ("bitsandbytes-llm-int8", four),
        ("bitsandbytes-nf4", four), ("bitsandbytes-fp4", eight), (None, eight),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="the checkpoint's weights are"):
            linear_method(quantize, torch.float32).build_stored(stored, None)
