"""Workers on tiny checkpoints, and a sampler that remembers the logits it was given."""

from pathlib import Path
from typing import Any

import torch

from tiercel.sampling.sampler import Sampler
from tiercel.wire.options import EngineOptions
from tiercel.wire.step import RowFailure, SampledToken
from tiercel.worker.worker import Worker


def make_worker(folder: Path, **options: Any) -> Worker:
    """A loaded worker with a small cache and a recording sampler; not warmed up."""
    given: dict[str, Any] = {
        "max_concurrent_requests": 16,
        "max_batch_total_tokens": 16 * 512,
        "threads": 1,
    }
    worker = Worker(EngineOptions(model_path=str(folder), **(given | options)))
    spec = worker.load()
    worker.allocate()
    worker.runner.sampler = RecordingSampler(  # type: ignore[attr-defined]
        spec.vocab_size,
        worker.max_rows,
        watermark_gamma=0.5,
        watermark_delta=2.0,
        masks=worker.masks,
    )
    return worker


class RecordingSampler(Sampler):
    """The real sampler; `logits[row]` are the float32 logits of every token drawn for a row."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logits: dict[int, list[torch.Tensor]] = {}

    def sample(
        self, logits: torch.Tensor, rows: list[int], tokens: list[Any], positions: list[int]
    ) -> list[SampledToken | RowFailure]:
        for row, values in zip(rows, logits.float().clone(), strict=True):
            self.logits.setdefault(row, []).append(values)
        return super().sample(logits, rows, tokens, positions)

    def recorded(self, row: int) -> torch.Tensor:
        """[tokens drawn, vocab]."""
        return torch.stack(self.logits[row])
