"""The table of `tiercel plan` at the start, with what was measured beside it. Logged row by row."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tiercel.model.spec import FalconSpec
from tiercel.parallel.shard import Shard
from tiercel.plan.cards import Card
from tiercel.plan.memory import (
    MemoryPlan,
    Workload,
    activation_bytes,
    plan_memory,
    plan_parts,
    staging_bytes,
)
from tiercel.plan.offload import offloaded_bytes
from tiercel.plan.sizes import Storage, kv_bytes_per_token, weight_bytes
from tiercel.wire.options import EngineOptions
from tiercel.worker.memory import HEADROOM

logger = logging.getLogger(__name__)

PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class MemoryRow:
    """One part of the plan in bytes. None: not measured here."""

    part: str
    planned: int
    measured: int | None
    note: str = ""

    def __str__(self) -> str:
        measured = "not measured" if self.measured is None else f"{_mb(self.measured)} measured"
        return f"{self.part}: {_mb(self.planned)} planned, {measured}{self.note}"


@dataclass
class Found:
    """What a worker finds until it is warm, in bytes. None: not known here."""

    device: str = "cpu"  # as in --device
    memory: int = 0  # of the card; on a CPU what was free before the weights came
    weights: int = 0
    copied_head: bool = False
    staging: int = 0  # see quantization.staging
    steps: int | None = None  # the most that the largest steps took
    left: int = 0  # what the platform leaves to the cache
    cache: int = 0
    cache_tokens: int = 0
    context: int | None = None  # all that torch did not allocate
    graphs: int | None = None  # means nothing on a CPU
    warm_up: int | None = None  # the most a warm-up step took for itself
    warm_up_tokens: int = 0  # of the largest of them
    free: int = 0  # when all is up


def start_plan(
    spec: FalconSpec, storage: Storage, options: EngineOptions, load: Workload, found: Found,
    *, ranks: int = 1,
) -> MemoryPlan:  # fmt: skip
    """The plan of one rank's device as it is, and as the options want it.

    A CPU has neither a context nor graphs and writes no whole weight out. The cache leaves it
    HEADROOM of what is free, and activations and logits have to do with that.
    """
    plan = plan_memory(spec, storage, Card(found.device, found.memory), ranks, load)
    weights = weight_bytes(spec, storage, ranks, copied_head=found.copied_head)
    if found.device != "cpu":
        shard = Shard(spec, ranks=ranks, unit=storage.unit)
        host = offloaded_bytes(shard, storage, options.cpu_offload_gb)
        graphs = plan.graphs if options.cuda_graphs else 0
        staging = staging_bytes(spec, storage, ranks) if host else plan.staging
        return replace(plan, weights=weights - host, graphs=graphs, staging=staging)
    unused = max(0, found.memory - weights)
    kept = unused - int(unused * options.memory_fraction * (1 - HEADROOM))
    taken = plan.activations
    return replace(
        plan,
        weights=weights,
        context=0,
        graphs=0,
        staging=0,
        headroom=kept - taken - plan.logits,
    )


def memory_rows(
    spec: FalconSpec, storage: Storage, options: EngineOptions, load: Workload, found: Found,
    *, ranks: int = 1,
) -> list[MemoryRow]:  # fmt: skip
    """What `tiercel plan` says of this model on one of its devices, and what the worker found."""
    plan = start_plan(spec, storage, options, load, found, ranks=ranks)
    tried = found.steps is not None
    measured: dict[str, tuple[int | None, str]] = {
        "memory": (found.memory, ", free before" if found.device == "cpu" else ""),
        "headroom": (found.free, ", free now"),
        "context": (found.context, ", with all else on the card"),
        "weights": (found.weights, f", in {storage.label}"),
        "activations": (found.steps, ", with the logits" if tried else ""),
        "staging": (found.staging, ""),
        "logits": (None, " by themselves" if tried else ""),
        "graphs": (found.graphs, ""),
        "cache": (found.left, ""),
    }
    rows = [
        MemoryRow(part.label, part.size, *measured[part.name])
        for part in plan_parts(plan, load)
        if found.device != "cpu" or part.name not in ("context", "graphs")
    ]
    size = found.cache_tokens * kv_bytes_per_token(spec, storage, ranks)
    rows.append(MemoryRow(f"KV cache, {found.cache_tokens:,} tokens", size, found.cache))
    if not tried:
        count = found.warm_up_tokens
        size = activation_bytes(spec, storage, ranks, count)
        label = f"activations, {count:,} prompt tokens to warm up"
        rows.append(MemoryRow(label, size, found.warm_up, ", with kernels made on the way"))
    return rows


def device_bytes(device: torch.device) -> int | None:
    """All memory of a GPU; None for a CPU."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else None


def device_name(device: torch.device) -> str:
    """The device in one word, for x-compute-type: cpu, or as nvidia-a100-sxm4-80gb."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return device.type
    return "-".join(torch.cuda.get_device_name(device).lower().split())


def outside_torch(device: torch.device) -> int | None:
    """What a GPU has given to anybody but torch's allocator: context, libraries, other processes.

    None for a CPU.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free - torch.cuda.memory_reserved(device))


def log_rows(rows: list[MemoryRow]) -> None:
    for row in rows:
        logger.info("memory plan, %s", row)


def growth(run: Callable[[], object]) -> int | None:
    """Run it, and return how far the resident memory rose above what it was before.

    None where the system does not say (it takes Linux's /proc, and leave to reset the peak).
    """
    try:
        (PROCESS / "clear_refs").write_text("5")
        before = _kilobytes("VmRSS")
    except (OSError, LookupError):
        run()
        return None
    run()
    return max(0, _kilobytes("VmHWM") - before) * 1024


def _kilobytes(name: str) -> int:
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(name)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
