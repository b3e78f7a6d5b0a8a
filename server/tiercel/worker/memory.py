"""How large the KV cache is: what the flag says, or what all rows could use and memory has."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tiercel.errors import ConfigError, OutOfMemory, StepOutOfMemory
from tiercel.model.spec import FalconSpec

# Of the free memory, what the cache leaves to activations, logits and everybody else.
HEADROOM = 0.2
SMALLEST_USEFUL_TOKENS = 64


# torch has no type of its own for it on a CPU.
_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"
# Nor for what torch's allocator did not ask for: page-locked memory and graphs (the runtime's
# words, or the driver's), cuBLAS's handles and workspaces, Triton's modules on their first launch.
# None of them leaves the device in an error. CUBLAS_STATUS_NOT_INITIALIZED is not among them: it
# can be want of memory, and a broken driver as well.
_DEVICE = re.compile(
    r"CUDA (driver )?error: (out of memory|CUBLAS_STATUS_ALLOC_FAILED)\b"
    r"|Triton Error \[CUDA\]: out of memory\b"
)


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Whatever torch says where memory ends becomes StepOutOfMemory; a GPU's unused is given back.

    Blocks that the allocator keeps in sizes nobody wants would make the next, smaller step fail,
    and those it keeps at all are lost to whoever asks the driver itself.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error)
        device = isinstance(error, torch.OutOfMemoryError) or _DEVICE.match(said) is not None
        if not (device or isinstance(error, MemoryError) or _CPU_ALLOCATOR in said):
            raise
        if device:
            torch.cuda.empty_cache()
        raise StepOutOfMemory(said.partition("\n")[0] or "memory is used up") from error


@dataclass(frozen=True)
class CacheSize:
    """`max_total_tokens` is the longest sequence that both the model and the pool can hold."""

    num_blocks: int
    max_total_tokens: int


def block_bytes(spec: FalconSpec, block_tokens: int, item_bytes: int) -> int:
    """Memory of one block in all layers."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * block_tokens * item_bytes


def cache_size(
    *,
    bytes_per_block: int,
    block_tokens: int,
    cache_bytes: int,
    max_rows: int,
    max_total_tokens: int,
    wanted_tokens: int | None,
) -> CacheSize:
    """Choose the pool.

    `wanted_tokens` is --max-batch-total-tokens; without it, enough for all rows at full length, or
    as much as fits into `cache_bytes`. `max_total_tokens` shrinks to a pool that is smaller.
    Raises OutOfMemory, naming the remedy, if the wanted pool or the smallest useful one is too big,
    ConfigError if the wanted one is of no use.
    """
    fits = cache_bytes // bytes_per_block
    per_row = -(-max_total_tokens // block_tokens)
    free = f"{cache_bytes / 1e9:.2f} GB is free for it"
    if wanted_tokens is not None:
        blocks = wanted_tokens // block_tokens
        if blocks > fits:
            raise OutOfMemory(
                f"--max-batch-total-tokens {wanted_tokens} needs "
                f"{blocks * bytes_per_block / 1e9:.2f} GB of cache, but only {free}; lower it"
            )
    else:
        blocks = min(max_rows * per_row, fits)
    smallest = min(SMALLEST_USEFUL_TOKENS, max_total_tokens)
    if blocks * block_tokens < smallest:
        if wanted_tokens is not None:
            raise ConfigError(
                f"--max-batch-total-tokens {wanted_tokens} is less than {smallest}; raise it"
            )
        raise OutOfMemory(
            f"the cache would hold {blocks * block_tokens} tokens, fewer than {smallest}, because "
            f"only {free} beside the weights; use a smaller model or more memory"
        )
    return CacheSize(blocks, min(max_total_tokens, blocks * block_tokens))
