"""What ranks must have in common, compared before any of them loads: flags, model, versions.

Ranks that differ would add up numbers that do not belong together, or wait for each other for ever.
"""

import hashlib
from pathlib import Path

import msgspec
import torch

import tiercel
from tiercel.errors import ConfigError
from tiercel.wire.options import EngineOptions

_FLAGS = (
    "dtype", "quantize", "double_quant", "block_tokens", "max_input_tokens", "max_total_tokens",
    "max_batch_prefill_tokens", "max_batch_total_tokens", "max_batch_size",
    "max_concurrent_requests", "rope_scaling", "rope_factor", "cuda_graphs", "cuda_graph_sizes",
    "joined_output", "overlap", "one_shot_all_reduce",
)  # fmt: skip
_TAIL_BYTES = 1 << 16

Facts = dict[str, str]


def facts_of(options: EngineOptions) -> Facts:
    """By name, as people know them."""
    facts = {
        "tiercel": tiercel.__version__,
        "torch": torch.__version__.partition("+")[0],
        "the model's files": _fingerprint(Path(options.model_path)),
    }
    for name in _FLAGS:
        facts[f"--{name.replace('_', '-')}"] = str(getattr(options, name))
    return facts


def encode_facts(facts: Facts) -> str:
    """As a rank leaves them for the others."""
    return msgspec.json.encode(facts).decode()


def compare(facts: Facts, first: bytes, rank: int) -> None:
    """This rank's against those of the first one. Raises ConfigError naming what differs."""
    wanted = msgspec.json.decode(first, type=Facts)
    for name in sorted(facts.keys() | wanted.keys()):
        ours, theirs = facts.get(name, "unknown"), wanted.get(name, "unknown")
        if ours != theirs:
            raise ConfigError(
                f"the ranks differ in {name}: {ours} on rank {rank}, {theirs} on rank 0; all of "
                "them need the same flags, model and versions"
            )


def _fingerprint(folder: Path) -> str:
    """Of the configuration and of the weight files' sizes and ends: quick, whatever their size."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            digest.update(f"{path.name} {size} ".encode() + file.read())
    return digest.hexdigest()[:12]
