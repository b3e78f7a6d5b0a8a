"""The watermark: a bias on a pseudo-random half of the vocabulary that follows the previous token.

J. Kirchenbauer et al., "A watermark for large language models", ICML 2023. Green lists come from
torch's CPU generator on every device, so a detector can rebuild them.
"""

from collections import OrderedDict

import torch

from tiercel.sampling.processors import IntArray
from tiercel.wire.request import SamplingParams

HASH_KEY = 15_485_863
_CACHED_LISTS = 128  # one byte per id each


def green_ids(vocab_size: int, previous_id: int, gamma: float) -> torch.Tensor:
    """The ids favoured after `previous_id`: int64 [int(vocab_size * gamma)], in no useful order."""
    generator = torch.Generator().manual_seed(HASH_KEY * previous_id)
    return torch.randperm(vocab_size, generator=generator)[: int(vocab_size * gamma)]


class Watermark:
    """Adds delta to the green ids. `gamma` is their share of the vocabulary, 0 to 1."""

    def __init__(self, gamma: float, delta: float) -> None:
        self._gamma = gamma
        self._delta = delta
        self._masks: OrderedDict[int, torch.Tensor] = OrderedDict()

    def wanted(self, params: SamplingParams) -> bool:
        return params.watermark

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        """Nothing to keep: gamma and delta are the server's."""

    def apply(self, logits: torch.Tensor, rows: list[int], tokens: list[IntArray]) -> None:
        for line, known in zip(logits, tokens, strict=True):
            line.add_(self._mask(int(known[-1]), logits), alpha=self._delta)

    def _mask(self, previous_id: int, logits: torch.Tensor) -> torch.Tensor:
        mask = self._masks.get(previous_id)
        if mask is None:
            vocab_size = logits.shape[1]
            mask = torch.zeros(vocab_size, dtype=torch.bool)
            mask[green_ids(vocab_size, previous_id, self._gamma)] = True
            mask = self._masks[previous_id] = mask.to(logits.device)
            if len(self._masks) > _CACHED_LISTS:
                self._masks.popitem(last=False)
        else:
            self._masks.move_to_end(previous_id)
        return mask
