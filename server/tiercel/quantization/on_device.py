"""Quantized layers on a GPU, through the kernels' ops; everything can be captured in a graph.

Few rows read the quantized bytes. For more, the weight is written out in the activations' type and
goes to the vendor's GEMM. All layers write to the same memory, which is in the plan. Not run on a
GPU yet, only with the ops' specification on a CPU.
"""

import torch
from torch.nn import functional

from tiercel.errors import ConfigError
from tiercel.layers.linear import Linear, bytes_of
from tiercel.parallel.take import take
from tiercel.quantization.method import LinearMethod
from tiercel.quantization.staging import Staging
from tiercel.quantization.stored import Nested, Stored, StoredFourBit, StoredInt8
from tiercel.quantization.tables import four_bit_table
from tiercel_kernels.ops import Ops
from tiercel_kernels.reference.nf4_dequantize import FourBitWeight
from tiercel_kernels.reference.skinny_linear import MAX_ROWS


class DeviceInt8Linear:
    """int8 rows, and activations as they are."""

    def __init__(
        self,
        ops: Ops,
        stored: StoredInt8,
        bias: torch.Tensor | None,
        staging: Staging,
        *,
        gelu: bool,
    ) -> None:
        """All tensors are on the device already."""
        self._ops = ops
        self._staging = staging
        staging.grow(stored.codes.numel())
        self._stored = stored
        self._scale = stored.absmax / 127.0
        self._bias = bias
        self._gelu = gelu

    @property
    def nbytes(self) -> int:
        return bytes_of(self._stored, self._bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        codes, absmax = self._stored.codes, self._stored.absmax
        if len(x) <= MAX_ROWS:
            return self._ops.int8_linear(x, codes, absmax, self._bias, self._gelu)
        # The scale first: sums of codes leave float16's range, at an absmax of 0.1 from 52 on. Into
        # `out`, so that there is never a weight in float32.
        weight = self._staging.room(*codes.shape)
        torch.mul(codes, self._scale[:, None], out=weight)
        if self._gelu:
            return self._ops.gelu(functional.linear(x, weight), self._bias)
        return functional.linear(x, weight, self._bias)


class DeviceFourBitLinear:
    """nf4 or fp4 blocks."""

    def __init__(
        self,
        ops: Ops,
        weight: FourBitWeight,
        bias: torch.Tensor | None,
        staging: Staging,
        *,
        gelu: bool,
    ) -> None:
        """All tensors are on the device already."""
        self._ops = ops
        self._staging = staging
        staging.grow(weight.out * weight.width)
        self._weight = weight
        self._bias = bias
        self._gelu = gelu

    @property
    def nbytes(self) -> int:
        weight = self._weight
        return bytes_of(weight.codes, weight.absmax, weight.nested_absmax, self._bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) <= MAX_ROWS:
            return self._ops.nf4_linear(x, self._weight, self._bias, self._gelu)
        room = self._staging.room(self._weight.out, self._weight.width)
        wide = self._ops.nf4_dequantize(self._weight, room)
        if self._gelu:
            return self._ops.gelu(functional.linear(x, wide), self._bias)
        return functional.linear(x, wide, self._bias)


class OnDevice:
    """A LinearMethod of one mode, for a device with `ops`. `plain`: that device's unquantized one.

    Weights are quantized on the host and then copied, so the device never holds one in 16 bits.
    """

    def __init__(
        self,
        quantize: str,
        dtype: torch.dtype,
        *,
        double_quant: bool,
        device: torch.device,
        ops: Ops,
        plain: LinearMethod,
        staging: Staging,
    ) -> None:
        """Raises ConfigError for a mode that has no kernel."""
        if quantize not in ("bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4"):
            raise ConfigError(
                f"--quantize {quantize} cannot run on {device.type}; use bitsandbytes, "
                "bitsandbytes-nf4 or bitsandbytes-fp4"
            )
        self._kind = None if quantize == "bitsandbytes" else quantize.rpartition("-")[2]
        self._dtype = dtype
        self._double_quant = double_quant
        self._device = device
        self._ops = ops
        self._staging = staging
        self.plain = plain
        self._table = four_bit_table(self._kind or "nf4").to(device)

    def build(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        stored: Stored
        if self._kind is None:
            stored = StoredInt8.quantize(weight)
        else:
            stored = StoredFourBit.quantize(weight, self._kind, double_quant=self._double_quant)
        return self.build_stored(stored, bias, gelu=gelu, order=order)

    def build_stored(
        self,
        stored: Stored,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        if isinstance(stored, StoredFourBit) and not stored.whole_blocks:
            raise ConfigError(
                f"4 bits on a GPU need layers whose width is a multiple of 64, not "
                f"{stored.shape[1]}; use --quantize bitsandbytes"
            )
        if order is not None:
            stored, bias = stored.reordered(order), None if bias is None else take(bias, 0, order)
        moved = None if bias is None else bias.to(self._device, self._dtype)
        if isinstance(stored, StoredInt8) and self._kind is None:
            on_device = StoredInt8(stored.codes.to(self._device), stored.absmax.to(self._device))
            return DeviceInt8Linear(self._ops, on_device, moved, self._staging, gelu=gelu)
        if isinstance(stored, StoredFourBit) and stored.kind == self._kind:
            weight = self._weight(stored)
            return DeviceFourBitLinear(self._ops, weight, moved, self._staging, gelu=gelu)
        raise ConfigError("the checkpoint's weights are quantized in another way than --quantize")

    def _weight(self, stored: StoredFourBit) -> FourBitWeight:
        out, width = stored.shape
        codes, statistics = stored.codes.to(self._device), stored.statistics
        if not isinstance(statistics, Nested):
            return FourBitWeight(codes, self._table, statistics.to(self._device), out, width)
        return FourBitWeight(
            codes,
            self._table,
            statistics.codes.to(self._device),
            out,
            width,
            statistics.absmax.to(self._device),
            statistics.table.to(self._device),
            statistics.offset,
        )
