"""The memory plan of the start, with what was measured beside it. Logged once, row by row."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiercel.model.spec import FalconSpec
from tiercel.plan.memory import activation_bytes, logits_bytes
from tiercel.plan.sizes import Storage, kv_bytes_per_token, weight_bytes

logger = logging.getLogger(__name__)

PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class MemoryRow:
    """One part of the plan in bytes. None: not measured here."""

    part: str
    planned: int
    measured: int | None

    def __str__(self) -> str:
        measured = "not measured" if self.measured is None else f"{_mb(self.measured)} measured"
        return f"{self.part}: {_mb(self.planned)} planned, {measured}"


@dataclass(frozen=True)
class Measured:
    """What a worker found, and what for. Bytes, but for the tokens and rows."""

    weights: int
    copied_head: bool
    cache: int
    cache_tokens: int
    warm_up: int | None  # the most a warm-up step took for itself
    warm_up_tokens: int
    prefill_tokens: int
    max_rows: int


def memory_rows(
    spec: FalconSpec, storage: Storage, found: Measured, ranks: int = 1
) -> list[MemoryRow]:
    """What `tiercel plan` says of this model on one of its devices, and what the worker found."""
    weights = weight_bytes(spec, storage, ranks, copied_head=found.copied_head)
    cache = found.cache_tokens * kv_bytes_per_token(spec, storage, ranks)

    def activations(tokens: int) -> tuple[str, int]:
        size = activation_bytes(spec, storage, ranks, tokens, dequantized=False)
        return f"activations, {tokens} prompt tokens", size

    return [
        MemoryRow(f"weights in {storage.label}", weights, found.weights),
        MemoryRow(f"KV cache, {found.cache_tokens} tokens", cache, found.cache),
        MemoryRow(*activations(found.warm_up_tokens), found.warm_up),
        MemoryRow(*activations(found.prefill_tokens), None),
        MemoryRow(
            f"logits, {found.max_rows} rows", logits_bytes(spec, storage, found.max_rows), None
        ),
    ]


def log_rows(rows: list[MemoryRow]) -> None:
    for row in rows:
        logger.info("memory of the %s", row)


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
