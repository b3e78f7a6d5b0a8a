"""`--quantize bitsandbytes-llm-int8`: LLM.int8 exactly, by bitsandbytes itself. For comparison.

Activations are quantized too, but for columns with a large value in any row of the batch, so a
row's result depends on the batch. Slower than `bitsandbytes`, and never more precise.
"""

import logging
from typing import Any

import torch
from torch.nn import functional

from tiercel.errors import ConfigError
from tiercel.layers.linear import Linear
from tiercel.quantization.stored import Stored, StoredInt8
from tiercel.quantization.unquantized import Unquantized

THRESHOLD = 6.0  # bitsandbytes' and transformers' default


def _bitsandbytes() -> Any:
    """The package, imported only for this mode: it takes 200 MB. Raises ConfigError without it."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(
            "--quantize bitsandbytes-llm-int8 is bitsandbytes' own arithmetic and needs the "
            "package; install bitsandbytes, or use --quantize bitsandbytes"
        ) from error
    # It says at every step that bfloat16 becomes float16 while it is quantized.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return bitsandbytes


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
        return self._stored.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._matmul(x, self._stored.codes, state=self._state, bias=self._bias)
        return functional.gelu(y) if self._gelu else y


class LlmInt8:
    """See LinearMethod."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._library = _bitsandbytes()
        self._dtype = dtype
        self.plain = Unquantized(dtype)

    def build(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        return self.build_stored(StoredInt8.quantize(weight), bias, gelu=gelu, order=order)

    def build_stored(
        self,
        stored: Stored,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        if not isinstance(stored, StoredInt8):
            raise ConfigError("the checkpoint's weights are in 4 bits, --quantize says 8")
        if order is not None:
            stored, bias = stored.reordered(order), None if bias is None else bias[order]
        bias = None if bias is None else bias.to(self._dtype)
        return LlmInt8Linear(self._library, stored, bias, gelu=gelu)
