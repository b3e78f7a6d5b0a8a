"""--cpu-offload-gb: weights that stay in the host's memory and come to the device at every step."""

import torch

from tiercel.errors import ConfigError
from tiercel.layers.fused import OpsLinear
from tiercel.layers.linear import bytes_of
from tiercel.quantization.page_locked import HostRuntime, page_locked
from tiercel.quantization.staging import Staging
from tiercel.quantization.stored import Stored
from tiercel_kernels.ops import Ops


class OffloadedLinear:
    """See layers.linear.Linear and IntoLinear."""

    def __init__(
        self,
        ops: Ops,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        staging: Staging,
        *,
        gelu: bool,
    ) -> None:
        """weight: [out, in] with the host, page-locked where a device copies from there."""
        self._ops = ops
        self._weight = weight
        self._bias = bias
        self._staging = staging
        self._gelu = gelu
        staging.grow(weight.numel())

    @property
    def nbytes(self) -> int:
        """Memory on the device: the weight's is everybody's, and the plan's own line."""
        return bytes_of(self._bias)

    @property
    def size(self) -> int:
        return self._weight.shape[0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._fetched()(x)

    def into(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return self._fetched().into(x, out)

    def _fetched(self) -> OpsLinear:
        weight = self._staging.fetch(self._weight)
        return OpsLinear(self._ops, weight, self._bias, gelu=self._gelu)


class Offloaded:
    """See LinearMethod. For the layers that the loader is told to leave with the host."""

    def __init__(
        self, ops: Ops, dtype: torch.dtype, device: torch.device, staging: Staging
    ) -> None:
        self._ops = ops
        self._dtype = dtype
        self._device = device
        self._staging = staging

    @property
    def plain(self) -> "Offloaded":
        return self

    def build(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> OffloadedLinear:
        if order is not None:
            weight, bias = weight[order], None if bias is None else bias[order]
        weight = weight.to(self._dtype).contiguous()
        if self._device.type == "cuda":
            runtime: HostRuntime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            weight = page_locked(weight, runtime, self._device)
        bias = None if bias is None else bias.to(self._device, self._dtype)
        return OffloadedLinear(self._ops, weight, bias, self._staging, gelu=gelu)

    def build_stored(
        self,
        stored: Stored,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> OffloadedLinear:
        raise ConfigError("--cpu-offload-gb cannot hold quantized weights; leave it out")
