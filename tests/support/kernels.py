"""Where kernels are tested, in which types, and memory around what they may write."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CANARY = 7.25
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter's dot of bfloat16 gives garbage (Triton 3.9).
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]
HALVES = DTYPES[1:]
# Of tests that take long in the interpreter.
LONG_DTYPES = DTYPES if DEVICE.type == "cuda" else DTYPES[:1]
# Of numbers up to about 8, after sums of a few thousand terms and one rounding.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    """Within the tolerance of the dtype."""
    torch.testing.assert_close(out, expected, rtol=0, atol=TOLERANCES[out.dtype])


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """From a normal distribution, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


class Guarded:
    """A matrix inside a larger one of canaries: `inner` is for a kernel, the rest for nobody."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, margin: int = 32) -> None:
        size = (rows + 2, columns + 2 * margin)
        self._whole = torch.full(size, CANARY, dtype=dtype, device=DEVICE)
        self.inner = self._whole[1 : rows + 1, margin : margin + columns]
        self._outside = torch.ones(size, dtype=torch.bool, device=DEVICE)
        self._outside[1 : rows + 1, margin : margin + columns] = False

    def intact(self) -> bool:
        """Whether nothing outside was written."""
        return bool((self._whole[self._outside] == CANARY).all())


class GuardedRows:
    """Contiguous rows between two stretches of canaries, for kernels that take no strides."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, margin: int = 2048) -> None:
        count = rows * columns
        self._whole = torch.full([count + 2 * margin], CANARY, dtype=dtype, device=DEVICE)
        self.inner = self._whole[margin : margin + count].view(rows, columns)
        self._margin = margin

    def intact(self) -> bool:
        """Whether nothing outside was written."""
        before, after = self._whole[: self._margin], self._whole[-self._margin :]
        return bool((before == CANARY).all() and (after == CANARY).all())


class Allocations(TorchDispatchMode):
    """While it is entered, whatever is allocated lies between two stretches of canaries.

    So a launcher's own results and scratch are watched, where it takes no target.
    """

    MARGIN = 4096

    def __init__(self) -> None:
        super().__init__()
        self._made: list[torch.Tensor] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in _ALLOCATING or not made.numel():
            return made
        count, canary = made.numel(), _canary(made.dtype)
        whole = made.new_full((count + 2 * self.MARGIN,), canary)
        self._made.append(whole)
        inner = whole[self.MARGIN : self.MARGIN + count].view(made.shape)
        return inner.zero_() if func is torch.ops.aten.zeros.default else inner

    def intact(self) -> bool:
        """Whether something was allocated, and nothing beside any of it was written."""
        ends = [end for each in self._made for end in (each[: self.MARGIN], each[-self.MARGIN :])]
        return bool(ends) and all(bool((end == _canary(end.dtype)).all()) for end in ends)


_ALLOCATING = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.zeros.default,
)


def _canary(dtype: torch.dtype) -> float:
    return CANARY if dtype.is_floating_point else int(CANARY)
