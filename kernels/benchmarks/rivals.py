"""bitsandbytes' own kernels on the same bytes, where it can be imported."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from tiercel_kernels.benchmark.timing import Call
from tiercel_kernels.reference.nf4_dequantize import BLOCK, FourBitWeight

_NAME = "bitsandbytes"


def bitsandbytes_int8(
    x: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor
) -> Mapping[str, Call]:
    """Its product of int8 rows, which quantizes x to int8 too; without outliers. Its weights are
    these codes and statistics. x is rounded to float16, which is all that it takes.
    """
    library = _library()
    if library is None:
        return {}
    half = x.to(torch.float16)

    def call() -> torch.Tensor:
        state = library.MatmulLtState()
        state.CB, state.SCB, state.has_fp16_weights, state.threshold = codes, absmax, False, 0.0
        made: torch.Tensor = library.matmul(half, codes, state=state)
        return made

    return {_NAME: call}


def bitsandbytes_four_bit(x: torch.Tensor, weight: FourBitWeight) -> Mapping[str, Call]:
    """Its product of one row, and for more of them what it has: writing the weight out, and a GEMM.

    The weight's statistics must not be nested.
    """
    library = _library()
    if library is None:
        return {}
    state = library.functional.QuantState(
        weight.absmax,
        torch.Size((weight.out, weight.width)),
        weight.table,
        BLOCK,
        "nf4",
        x.dtype,
    )
    packed = weight.codes.view(-1, 1)

    def call() -> torch.Tensor:
        made: torch.Tensor = library.matmul_4bit(x, packed.t(), quant_state=state)
        return made

    return {_NAME: call}


def _library() -> Any:
    if importlib.util.find_spec(_NAME) is None:
        return None
    try:
        return importlib.import_module(_NAME)
    except Exception:  # noqa: BLE001 - one that does not fit the host is no rival
        return None
