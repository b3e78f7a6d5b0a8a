"""Staging: the one place on a device for a weight that is there for its product only."""

import torch


class Staging:
    """Memory on the device for one weight at a time, of the largest of them.

    Eager steps and all graphs write to it: a weight of each would be 1.1 GB for 40B in int8. The
    next weight waits for the product before it, as both are on the step's stream; so two branches
    of a layer must not run at once. A second place would hide a product behind a copy from the
    host, which takes ten times as long: little to gain.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._numbers = torch.empty(0, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        return self._numbers.nbytes

    def grow(self, count: int) -> None:
        """Room for a weight of `count` numbers; before any step."""
        if count > self._numbers.numel():
            self._numbers = self._numbers.new_empty(count)

    def room(self, out: int, width: int) -> torch.Tensor:
        """[out, width] to write a weight to, valid until the next. Can be captured in a graph."""
        return self._numbers[: out * width].view(out, width)

    def fetch(self, weight: torch.Tensor) -> torch.Tensor:
        """The host's weight [out, in] on the device, valid until the next."""
        return self.room(*weight.shape).copy_(weight, non_blocking=True)
