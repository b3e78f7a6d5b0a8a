"""`--quantize bitsandbytes-llm-int8`: LLM.int8 exactly, by bitsandbytes itself. For comparison.

Activations are quantized too, but for columns with a large value in any row of the batch, so a
row's result depends on the batch. Slower than `bitsandbytes`, and never more precise.
"""

import functools
import logging
from typing import Any

import torch
from torch.nn.functional import gelu as exact_gelu

from tiercel.errors import ConfigError
from tiercel.layers.linear import bytes_of
from tiercel.quantization.bitsandbytes_package import import_bitsandbytes
from tiercel.quantization.int8 import Int8
from tiercel.quantization.stored import StoredInt8

THRESHOLD = 6.0  # bitsandbytes' and transformers' default


def _bitsandbytes() -> Any:
    """The package, imported only for this mode: it takes 200 MB. Raises ConfigError without it."""
    try:
        library = import_bitsandbytes()
    except ImportError as error:
        raise ConfigError(
            "--quantize bitsandbytes-llm-int8 is bitsandbytes' own arithmetic and needs the "
            "package; install bitsandbytes, or use --quantize bitsandbytes"
        ) from error
    # It says at every step that bfloat16 becomes float16 while it is quantized.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return library


class LlmInt8Linear:
    """bitsandbytes' matmul over int8 rows."""

    def __init__(
        self, library: Any, stored: StoredInt8, bias: torch.Tensor | None, *, gelu: bool
    ) -> None:
        self._matmul = library.matmul
        self._stored = stored
        self._bias = bias
        self._gelu = gelu
        self._state = library.MatmulLtState()
        self._state.threshold = THRESHOLD
        self._state.has_fp16_weights = False
        self._state.is_training = False
        self._state.CB, self._state.SCB = stored.codes, stored.absmax

    @property
    def nbytes(self) -> int:
        return bytes_of(self._stored, self._bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._matmul(x, self._stored.codes, state=self._state, bias=self._bias)
        return exact_gelu(y) if self._gelu else y


def llm_int8(dtype: torch.dtype) -> Int8:
    """The LinearMethod. Raises ConfigError without bitsandbytes."""
    return Int8(dtype, functools.partial(LlmInt8Linear, _bitsandbytes()))
