"""The layers for a GPU with the ops' specification on a CPU; with kernels where there is a GPU."""

import pytest
import torch
from torch.nn import functional

from support.bitsandbytes_models import MODES, quantized_module
from support.kernels import DEVICE
from tiercel.errors import ConfigError
from tiercel.quantization.method import linear_method
from tiercel.quantization.on_device import OnDevice
from tiercel.quantization.staging import Staging
from tiercel.quantization.stored import StoredFourBit
from tiercel_kernels.choose import choose_ops

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def method(quantize: str, dtype: torch.dtype, double_quant: bool = False) -> OnDevice:
    return OnDevice(
        quantize, dtype,
        double_quant=double_quant, device=DEVICE, ops=choose_ops(DEVICE),
        plain=linear_method(None, dtype), staging=Staging(dtype, DEVICE),
    )  # fmt: skip


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.cpu().double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("bias", "gelu"), [(False, False), (True, True), (True, False)])
@pytest.mark.parametrize(("quantize", "double_quant"), MODES, ids=str)
def test_parity_with_few_and_many_rows(
    quantize: str, double_quant: bool, bias: bool, gelu: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = (torch.randn(96, 256, generator=generator) / 16).to(dtype)
    added = torch.randn(96, generator=generator).to(dtype) if bias else None
    layer = method(quantize, dtype, double_quant).build(weight, added, gelu=gelu)
    theirs = quantized_module(quantize, weight, added, double_quant=double_quant)
    tolerance = max(TOLERANCE[dtype], 1e-3) if double_quant else TOLERANCE[dtype]
    for count in (1, 32, 33):
        x = torch.randn(count, 256, generator=generator).to(dtype)
        expected = theirs(x)
        expected = functional.gelu(expected) if gelu else expected
        y = layer(x.to(DEVICE))
        assert y.dtype == dtype
        assert error(y, expected) < tolerance


@pytest.mark.parametrize("quantize", ["bitsandbytes", "bitsandbytes-nf4"])
def test_layers_write_their_weights_to_one_place(quantize: str) -> None:
    """As large as the widest, whatever the order; each result is that of its own weight."""
    generator = torch.Generator().manual_seed(6)
    staging = Staging(torch.float32, DEVICE)
    made = OnDevice(
        quantize, torch.float32,
        double_quant=False, device=DEVICE, ops=choose_ops(DEVICE),
        plain=linear_method(None, torch.float32), staging=staging,
    )  # fmt: skip
    shapes = ((96, 64), (256, 128), (64, 192))
    layers = [made.build(torch.randn(shape, generator=generator), None) for shape in shapes]
    assert staging.nbytes == 256 * 128 * 4
    place = staging.room(1, 1).data_ptr()
    rows = [torch.randn(33, width, generator=generator).to(DEVICE) for _, width in shapes]
    first = [layer(x) for layer, x in zip(layers, rows, strict=True)]
    for layer, x, y in reversed(list(zip(layers, rows, first, strict=True))):
        assert torch.equal(layer(x), y)
    assert staging.room(1, 1).data_ptr() == place and staging.nbytes == 256 * 128 * 4


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("quantize", "double_quant"), MODES, ids=str)
def test_large_results_in_float16(quantize: str, double_quant: bool, gelu: bool) -> None:
    """Results of 500 from weights of 0.1: sums of int8 codes would be infinite."""
    weight = torch.full((192, 256), 0.1, dtype=torch.float16)
    weight[::2] *= -1
    bias = torch.full((192,), 20.0, dtype=torch.float16)
    layer = method(quantize, torch.float16, double_quant).build(weight, bias, gelu=gelu)
    theirs = quantized_module(quantize, weight, bias, double_quant=double_quant)
    for count in (1, 32, 33, 64):
        x = torch.randn(count, 256).abs().to(torch.float16) * 25
        expected = functional.gelu(theirs(x)) if gelu else theirs(x)
        assert 300 < expected[:, 1::2].mean() < 800
        assert error(layer(x.to(DEVICE)), expected) < TOLERANCE[torch.float16]


@pytest.mark.parametrize(("quantize", "double_quant"), MODES, ids=str)
def test_as_large_and_as_ordered_as_on_the_cpu(quantize: str, double_quant: bool) -> None:
    weight, bias = torch.randn(96, 256), torch.randn(96)
    order = torch.randperm(96)
    ours = method(quantize, torch.float32, double_quant).build(weight, bias, order=order)
    cpu = linear_method(quantize, torch.float32, double_quant=double_quant)
    theirs = cpu.build(weight, bias, order=order)
    assert ours.nbytes <= theirs.nbytes
    x = torch.randn(3, 256)
    torch.testing.assert_close(ours(x.to(DEVICE)).cpu(), theirs(x), rtol=1e-4, atol=1e-4)


def test_what_no_kernel_can_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="--quantize bitsandbytes-llm-int8 cannot run on"):
        method("bitsandbytes-llm-int8", torch.bfloat16)
    with pytest.raises(ConfigError, match="a multiple of 64, not 80"):
        method("bitsandbytes-nf4", torch.float32).build(torch.randn(8, 80), None)
    four = StoredFourBit.quantize(torch.randn(8, 64), "fp4", double_quant=False)
    for quantize in ("bitsandbytes", "bitsandbytes-nf4"):
        with pytest.raises(ConfigError, match="quantized in another way"):
            method(quantize, torch.float32).build_stored(four, None)
