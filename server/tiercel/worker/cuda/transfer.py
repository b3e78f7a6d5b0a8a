"""Pinned ring buffers: numbers go to the device and back without anybody waiting."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]
Mark = torch.cuda.Event | None  # a place in the stream; None on a device without streams

# Uploads under way at once. Those of two steps, in which many sequences may start, each with an
# upload of its own: a slot that is taken again too early would wait for the step before.
SLOTS = 128


class Uploads:
    """Sends integer arrays to the device, several packed into one copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._pinned: list[torch.Tensor] = [torch.empty(0, dtype=torch.int64)] * SLOTS
        self._copied: list[torch.cuda.Event | None] = [None] * SLOTS
        self._next = 0

    def send(self, *arrays: IntArray) -> list[torch.Tensor]:
        """The arrays on the device, flat, int64, in the order of the stream; one copy for all."""
        sizes = [each.size for each in arrays]
        if not self._cuda:  # views of one tensor there too, so that tests see where they begin
            packed = np.concatenate([each.reshape(-1) for each in arrays])
            return list(torch.split(torch.from_numpy(packed), sizes))
        slot, self._next = self._next, (self._next + 1) % SLOTS
        copied = self._copied[slot]
        if copied is not None:
            copied.synchronize()  # the copy of SLOTS uploads ago: done long since
        total = sum(sizes)
        if self._pinned[slot].numel() < total:
            size = max(1024, 1 << (total - 1).bit_length())
            self._pinned[slot] = torch.empty(size, dtype=torch.int64, pin_memory=True)
        pinned = self._pinned[slot][:total]
        np.concatenate([each.reshape(-1) for each in arrays], out=pinned.numpy())
        sent = pinned.to(self._device, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._copied[slot] = copied
        return list(torch.split(sent, sizes))


@dataclass(slots=True)
class Download:
    """Tokens and logprobs on their way to the host."""

    ids: torch.Tensor  # int64 [rows], pinned
    logprobs: torch.Tensor  # float32 [rows], pinned
    began: Mark
    ended: Mark

    def wait(self) -> float:
        """Until they are here; seconds since `began`, as the device worked (0 without one)."""
        if self.began is None or self.ended is None:
            return 0.0
        self.ended.synchronize()
        return float(self.began.elapsed_time(self.ended)) / 1e3


class Downloads:
    """Pinned buffers for what is drawn: one for each step that may be out, and one to read."""

    def __init__(self, device: torch.device, max_rows: int, depth: int) -> None:
        self._cuda = device.type == "cuda"
        self._ids = torch.empty(depth + 1, max_rows, dtype=torch.int64, pin_memory=self._cuda)
        self._logprobs = torch.empty(
            depth + 1, max_rows, dtype=torch.float32, pin_memory=self._cuda
        )
        self._next = 0

    def mark(self) -> Mark:
        """A place in the stream that time can be measured from; None where there is none."""
        if not self._cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def fetch(self, ids: torch.Tensor, logprobs: torch.Tensor, began: Mark) -> Download:
        """Start copying [rows] each; valid until `depth` further calls."""
        slot, self._next = self._next, (self._next + 1) % len(self._ids)
        rows = ids.shape[0]
        kept, values = self._ids[slot, :rows], self._logprobs[slot, :rows]
        kept.copy_(ids, non_blocking=True)
        values.copy_(logprobs, non_blocking=True)
        return Download(kept, values, began, self.mark())
