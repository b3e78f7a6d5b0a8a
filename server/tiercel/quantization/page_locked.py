"""Page-locked host memory of exactly the size that is asked for: what a device copies from.

torch's own rounds each block up to a power of two, which made 6.4 GB of 4 GB of Falcon-7B.
"""

import contextlib
import logging
import weakref
from typing import Protocol

import torch

logger = logging.getLogger(__name__)

PAGE = 4096


class HostRuntime(Protocol):
    """What is used of `torch.cuda.cudart()`. 0 is success."""

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:  # noqa: N802
        """Lock these pages."""
        ...

    def cudaHostUnregister(self, pointer: int) -> int:  # noqa: N802
        """Let go of what was registered under this address."""
        ...


def page_locked(tensor: torch.Tensor, runtime: HostRuntime, device: torch.device) -> torch.Tensor:
    """A contiguous copy of a host's tensor in whole pages of its own, locked as long as it lives.

    Where the runtime refuses (a limit on locked memory, or a system that cannot), torch's pinned
    memory is tried instead; that raises where it gets none either.
    """
    place = _in_whole_pages(tensor)
    pointer, size = place.data_ptr(), _whole_pages(tensor.nbytes)
    status = int(runtime.cudaHostRegister(pointer, size, 0))
    if status:
        logger.warning(
            "%d MB of the host's memory could not be page-locked where they are (CUDA error %d): "
            "torch's pinned memory takes up to twice as much",
            size // 1_000_000,
            status,
        )
        _forget_error(device)
        return tensor.contiguous().pin_memory()
    # Before the memory goes back: the pages would stay locked. At the exit of the process there may
    # be no driver to tell any more, and nothing to save.
    weakref.finalize(place, runtime.cudaHostUnregister, pointer).atexit = False
    return place


def _in_whole_pages(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on pages that nothing else is on: a page can be locked for one owner only."""
    memory = torch.empty(_whole_pages(tensor.nbytes) + PAGE, dtype=torch.uint8)
    first = -memory.data_ptr() % PAGE
    place = memory[first : first + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return place.copy_(tensor)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _forget_error(device: torch.device) -> None:
    """The runtime remembers a refusal, and torch would take it for the next kernel's."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
