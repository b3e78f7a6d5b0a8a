"""What a generation's logprobs must be: transformers' forward and the contract's formulas."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from support.checkpoints import load_reference
from support.sampling_reference import Row, log_softmax, process
from tiercel.wire.request import SamplingParams


@dataclass(frozen=True)
class Step:
    """What was known before a token, and the logits for it."""

    known: list[int]
    logits: Row

    def processed(self, params: SamplingParams) -> Row:
        return process(self.logits, self.known, params)

    def logprobs(self, params: SamplingParams) -> Row:
        """Of all tokens, after every processor."""
        return log_softmax(self.processed(params))


class Reference:
    """transformers' model of a folder, in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        self._model = load_reference(folder)

    def steps(self, prompt: Sequence[int], generated: Sequence[int]) -> list[Step]:
        """One for each generated token; with a prompt of one, one for each of its successors."""
        ids = [*prompt, *generated]
        with torch.inference_mode():
            logits = self._model(torch.tensor([ids])).logits[0].to(torch.float64).numpy()
        first = len(prompt)
        return [Step(ids[:place], logits[place - 1]) for place in range(first, len(ids))]

    def logprobs(
        self, prompt: Sequence[int], generated: Sequence[int], params: SamplingParams
    ) -> list[float]:
        """Of the generated tokens."""
        steps = self.steps(prompt, generated)
        return [
            float(step.logprobs(params)[token])
            for step, token in zip(steps, generated, strict=True)
        ]

    def plain(self, ids: Sequence[int]) -> list[float]:
        """Of all tokens but the first, from raw logits."""
        raw = SamplingParams()
        return self.logprobs(ids[:1], ids[1:], raw)


def close(found: Sequence[float], wanted: Sequence[float]) -> bool:
    """Equal within what float32 sums may differ by."""
    return bool(np.allclose(found, wanted, rtol=1e-4, atol=2e-4))
