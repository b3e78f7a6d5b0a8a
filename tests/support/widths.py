"""Checkpoints in the true widths of the published models and few layers, and narrow ones for CPUs.

The vocabulary is true for 7B; the others have a small one, and 40B one layer, which changes nothing
but the time that writing and reading takes.
"""

from pathlib import Path
from typing import Any

from support.checkpoints import make_checkpoint

TRUE: dict[str, dict[str, Any]] = {
    "7b": {"heads": 71, "head_dim": 64, "vocab_size": 65024},
    "40b": {"heads": 128, "kv_heads": 8, "head_dim": 64, "vocab_size": 4096, "layers": 1},
    "11b": {"heads": 32, "kv_heads": 8, "head_dim": 128, "vocab_size": 4096},
    "rw-1b": {"heads": 32, "head_dim": 64, "vocab_size": 4096},
}
NARROW: dict[str, dict[str, Any]] = {name: {"vocab_size": 512} for name in TRUE}


def make_wide(folder: Path, variant: str, device: str, dtype: str) -> Path:
    """True widths for a GPU, narrow ones for a CPU; two layers if nothing else is said."""
    sizes = {"layers": 2} | (NARROW if device == "cpu" else TRUE)[variant]
    return make_checkpoint(folder, variant, dtype=dtype, max_positions=2048, **sizes)


def vocabulary(variant: str, device: str) -> int:
    """Ids of such a checkpoint."""
    size: int = (NARROW if device == "cpu" else TRUE)[variant]["vocab_size"]
    return size
