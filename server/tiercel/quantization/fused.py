"""Unquantized weights on a device whose layers run through the kernels' ops."""

import torch

from tiercel.layers.fused import OpsLinear
from tiercel_kernels.ops import Ops


class FusedUnquantized:
    """See LinearMethod."""

    def __init__(self, ops: Ops, dtype: torch.dtype) -> None:
        self._ops = ops
        self._dtype = dtype

    def build(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False
    ) -> OpsLinear:
        """See LinearMethod; what is returned is an IntoLinear too."""
        bias = None if bias is None else bias.to(self._dtype)
        return OpsLinear(self._ops, weight.to(self._dtype).contiguous(), bias, gelu=gelu)
