"""Ops: the record of callables that a platform runs. Their specifications are in `reference`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from tiercel_kernels.reference.decode_plan import DecodePlan
from tiercel_kernels.reference.nf4_dequantize import FourBitWeight
from tiercel_kernels.reference.penalties import Penalties
from tiercel_kernels.reference.residual_norm import Norm
from tiercel_kernels.reference.sample import SampleParams

Tensor = torch.Tensor


class DecodeAttention(Protocol):
    """See reference.decode_attention."""

    def __call__(
        self,
        queries: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        contexts: Tensor,
        plan: DecodePlan,
        out: Tensor,
        slopes: Tensor | None = None,
    ) -> None: ...


class PrefillAttention(Protocol):
    """See reference.prefill_attention."""

    def __call__(
        self,
        queries: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        starts: Tensor,
        first_tokens: Tensor,
        max_count: int,
        out: Tensor,
        slopes: Tensor | None = None,
    ) -> None: ...


class QkvRotaryCache(Protocol):
    """See reference.qkv_rotary_cache."""

    def __call__(
        self,
        qkv: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        positions: Tensor,
        slots: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
    ) -> Tensor: ...


class Gelu(Protocol):
    """See reference.gelu."""

    def __call__(
        self, x: Tensor, bias: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor: ...


class SkinnyLinear(Protocol):
    """See reference.skinny_linear."""

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False
    ) -> Tensor: ...


class Int8Linear(Protocol):
    """See reference.int8_linear."""

    def __call__(
        self,
        x: Tensor,
        codes: Tensor,
        absmax: Tensor,
        bias: Tensor | None = None,
        gelu: bool = False,
    ) -> Tensor: ...


class Nf4Linear(Protocol):
    """See reference.nf4_linear."""

    def __call__(
        self, x: Tensor, weight: FourBitWeight, bias: Tensor | None = None, gelu: bool = False
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of every op. `choose_ops` makes it, once per device."""

    name: str  # of the implementation: "reference" or "fused"
    reason: str  # why it was chosen, one line for the log
    decode_plan: Callable[[Tensor, int, int], DecodePlan]
    decode_attention: DecodeAttention
    prefill_attention: PrefillAttention
    qkv_rotary_cache: QkvRotaryCache
    residual_norm: Callable[
        [Tensor, tuple[Tensor, ...], tuple[Norm, ...], float], tuple[Tensor, tuple[Tensor, ...]]
    ]
    gelu: Gelu
    skinny_linear: SkinnyLinear
    int8_linear: Int8Linear
    nf4_linear: Nf4Linear
    nf4_dequantize: Callable[[FourBitWeight, Tensor], Tensor]
    penalties: Callable[[Tensor, Tensor, Tensor, Tensor, Penalties], None]
    vocab_mask: Callable[[Tensor, Tensor], None]
    sample: Callable[[Tensor, SampleParams], tuple[Tensor, Tensor]]
