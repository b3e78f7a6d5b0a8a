"""Unquantized weights on a device whose layers run through the kernels' ops."""

import torch

from tiercel.errors import ConfigError
from tiercel.layers.fused import OpsLinear
from tiercel.quantization.stored import Stored
from tiercel_kernels.ops import Ops


class FusedUnquantized:
    """See LinearMethod. What it builds is an IntoLinear too."""

    def __init__(self, ops: Ops, dtype: torch.dtype, device: torch.device) -> None:
        self._ops = ops
        self._dtype = dtype
        self._device = device

    @property
    def plain(self) -> "FusedUnquantized":
        return self

    def build(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> OpsLinear:
        weight = weight.to(self._device, self._dtype)
        bias = None if bias is None else bias.to(self._device, self._dtype)
        if order is not None:
            order = order.to(self._device)
            weight, bias = weight[order], None if bias is None else bias[order]
        return OpsLinear(self._ops, weight.contiguous(), bias, gelu=gelu)

    def build_stored(
        self,
        stored: Stored,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> OpsLinear:
        raise ConfigError("the checkpoint's weights are quantized, and this method has none")
