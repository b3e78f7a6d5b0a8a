"""Both kinds of linear layer against plain arithmetic, with awkward shapes."""

import pytest
import torch
from torch.nn import functional

from tiercel.errors import ConfigError
from tiercel.layers.half import HalfLinear
from tiercel.layers.linear import OneOrMore, PackedLinear, PlainLinear
from tiercel.quantization.method import linear_method

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = [(1, 1), (7, 5), (320, 192), (71 * 8, 71), (4096, 192)]


def expected(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool
) -> torch.Tensor:
    y = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return functional.gelu(y) if gelu else y


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("with_bias", "gelu"), [(False, False), (True, True), (True, False)])
def test_the_built_layer_multiplies(
    dtype: torch.dtype, shape: tuple[int, int], with_bias: bool, gelu: bool
) -> None:
    torch.manual_seed(1)
    outputs, inputs = shape
    weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
    bias = torch.randn(outputs).to(dtype) if with_bias else None
    layer = linear_method(None, dtype).build(weight, bias, gelu=gelu)
    given = weight.nbytes + (0 if bias is None else bias.nbytes)
    if isinstance(layer, OneOrMore | HalfLinear):  # padded, or two of them: see test_widened
        assert layer.nbytes > given
    else:
        assert layer.nbytes == given
    for rows in (1, 3, 33):
        x = torch.randn(rows, inputs).to(dtype)
        y = layer(x)
        assert y.dtype == dtype
        right = expected(x, weight, bias, gelu)
        torch.testing.assert_close(y.double(), right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("gelu", [False, True])
def test_packed_and_plain_agree_in_float32(gelu: bool) -> None:
    """The fused GELU is the exact one, not the tanh approximation (which differs by 5e-4)."""
    weight, bias, x = torch.randn(96, 64), torch.randn(96), torch.randn(9, 64)
    packed = PackedLinear(weight, bias, gelu=gelu)(x)
    plain = PlainLinear(weight, bias, gelu=gelu)(x)
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)


def test_a_weight_is_cast_to_the_dtype_of_the_activations() -> None:
    weight, method = torch.randn(8, 8), linear_method(None, torch.bfloat16)
    layer = method.build(weight, None)
    assert layer(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.nbytes == method.build(weight.bfloat16(), None).nbytes


def test_an_unknown_quantization_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="--quantize gptq is not supported"):
        linear_method("gptq", torch.float32)
