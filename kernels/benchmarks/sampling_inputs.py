"""What the ops behind the output head share: logits of a batch in Falcon's vocabulary."""

import torch

from benchmarks.inputs import randn

VOCAB = 65024
ROWS = (1, 64, 256)


def logits_of(rows: int, vocab: int, device: torch.device, seed: int) -> torch.Tensor:
    """float32 [rows, vocab], with the spread of a trained model's."""
    return randn(rows, vocab, device=device, seed=seed, dtype=torch.float32) * 3
