"""Random inputs in true shapes, made on the device they are for."""

from dataclasses import dataclass

import torch

from tiercel_kernels.benchmark.bounds import FalconShape

BLOCK_TOKENS = 16
# Tables are as wide as a server's: for the longest sequence it would take, not the one at hand.
LEAST_TABLE_TOKENS = 2048


def dtype_of(device: torch.device) -> torch.dtype:
    """What is measured: bfloat16, and on a CPU, where kernels are interpreted, float32."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def randn(*shape: int, device: torch.device, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """From a normal distribution, made in `dtype` on the device itself."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device, dtype=dtype)


def slopes(shape: FalconShape, device: torch.device) -> torch.Tensor | None:
    """ALiBi's, rounded to bfloat16, for a number of heads that is a power of two."""
    if not shape.alibi:
        return None
    exponents = -8.0 * torch.arange(1, shape.heads + 1, device=device) / shape.heads
    return torch.exp2(exponents).bfloat16().float()


@dataclass(frozen=True)
class PagedCache:
    """keys, values: [blocks, block_tokens, kv_heads, head_dim], a token's heads side by side, as in
    the server's cache; tables: int32 [rows, max_blocks], every row with blocks of its own in random
    order.
    """

    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor

    @classmethod
    def random(
        cls, shape: FalconShape, contexts: list[int], device: torch.device, seed: int
    ) -> "PagedCache":
        """With room for `contexts` tokens in each row."""
        needed = [-(-each // BLOCK_TOKENS) for each in contexts]
        width = max(*needed, LEAST_TABLE_TOKENS // BLOCK_TOKENS)
        blocks = sum(needed) + 1  # block 0 belongs to nobody
        size = (2, blocks, BLOCK_TOKENS, shape.kv_heads, shape.head_dim)
        memory = randn(*size, device=device, seed=seed, dtype=dtype_of(device))
        order = torch.randperm(blocks - 1, generator=torch.Generator().manual_seed(seed)) + 1
        tables = torch.zeros(len(contexts), width, dtype=torch.int32)
        first = 0
        for row, count in enumerate(needed):
            tables[row, :count] = order[first : first + count]
            first += count
        keys, values = memory.unbind()
        return cls(keys, values, tables.to(device))


def cache_bytes(shape: FalconShape, tokens: int, item: int = 2) -> int:
    """Keys and values of `tokens` tokens in one layer."""
    return 2 * tokens * shape.kv_heads * shape.head_dim * item


def sample_rows(rows: int) -> list[int]:
    """First, middle and last: what is compared with the reference, which takes row after row."""
    return sorted({0, rows // 2, rows - 1})
