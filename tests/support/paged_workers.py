"""Workers of the CUDA platform on this machine's CPU: all of it but graphs, events and pinning."""

from pathlib import Path
from typing import Any

import torch

from tiercel.wire.options import EngineOptions
from tiercel.worker.cuda.platform import CudaPlatform
from tiercel.worker.worker import Worker
from tiercel_kernels.choose import reference_ops
from tiercel_kernels.ops import Ops


def make_paged_worker(
    folder: Path, ops: Ops | None = None, *, overlap: bool = True, **options: Any
) -> Worker:
    """A loaded worker with a small cache; not warmed up. `ops` None: the specifications."""
    given: dict[str, Any] = {
        "max_concurrent_requests": 16,
        "max_batch_total_tokens": 16 * 512,
        "max_batch_prefill_tokens": 64,
        "threads": 1,
    }
    platform = CudaPlatform(
        torch.device("cpu"), reference_ops() if ops is None else ops, overlap=overlap
    )
    worker = Worker(EngineOptions(model_path=str(folder), **(given | options)), platform)
    worker.load()
    worker.allocate()
    return worker
