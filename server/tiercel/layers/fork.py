"""Two branches of a layer: one after the other, or the first on a stream of its own."""

from collections.abc import Callable

import torch

Branch = Callable[[], torch.Tensor]
Fork = Callable[[Branch, Branch], tuple[torch.Tensor, torch.Tensor]]


def in_turn(first: Branch, second: Branch) -> tuple[torch.Tensor, torch.Tensor]:
    """One after the other."""
    return first(), second()


class SideStream:
    """The first branch beside the second, as in falcon-7b attention beside the MLP's GEMMs.

    Also inside of a CUDA graph, where the streams become branches of it. Memory is safe without
    further events: whatever one stream frees, it uses again only behind the next fork or join.
    Not measured yet, and off unless EngineOptions.fork_attention says otherwise; never for weights
    that are staged (quantization.staging), of which only one is there at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, first: Branch, second: Branch) -> tuple[torch.Tensor, torch.Tensor]:
        main = torch.cuda.current_stream(self._device)
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            a = first()
        b = second()
        main.wait_stream(self._side)
        return a, b
