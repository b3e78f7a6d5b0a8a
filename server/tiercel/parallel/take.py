"""Taking a part of a tensor that is in memory as a whole."""

import torch


def take(tensor: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """Those indices along `axis`, zeros where `index` (int64 [n], same device) is -1."""
    taken = tensor.index_select(axis, index.clamp(min=0))
    padding = (index < 0).nonzero().squeeze(1)
    return taken.index_fill_(axis, padding, 0) if len(padding) else taken
