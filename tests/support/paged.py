"""Random paged caches for the kernels' tests, with memory around everything that may be written."""

from dataclasses import dataclass

import torch

from support.kernels import CANARY, DEVICE

BLOCK_TOKENS = 16
# Of attention over values from a normal distribution, which are up to about 4: one rounding of the
# weights and one of the output. In float32 the order of a few thousand additions.
TOLERANCES = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    """Within the tolerance of the dtype."""
    torch.testing.assert_close(out, expected, rtol=0, atol=TOLERANCES[out.dtype])


@dataclass(frozen=True)
class Shape:
    """The heads of a model."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int = 64
    alibi: bool = False

    def slopes(self) -> torch.Tensor | None:
        if not self.alibi:
            return None
        exponents = -8.0 * torch.arange(1, self.heads + 1) / self.heads
        return torch.exp2(exponents).bfloat16().float().to(DEVICE)


SEVEN = Shape("7b", 71, 1)
ELEVEN = Shape("11b", 8, 2, head_dim=128)  # two of the eight groups of 4
FORTY = Shape("40b", 32, 2)  # groups of 16
HUGE = Shape("180b", 58, 2)  # groups of 29
RW = Shape("rw", 2, 2, alibi=True)  # two of the 32 or 64 heads
RANK = Shape("7b-rank", 9, 1)  # 72 heads on 8 ranks
MULTI_QUERY_ALIBI = Shape("alibi-mq", 9, 1, alibi=True)
# All heads of a model; the others above have a part of theirs, for time.
WHOLE = [
    Shape("all of 11b", 32, 8, head_dim=128),
    Shape("all of 40b", 128, 8),
    Shape("all of 180b", 232, 8),
    Shape("all of rw", 32, 32, alibi=True),
]
SHAPES = [SEVEN, ELEVEN, FORTY, HUGE, RW, RANK, MULTI_QUERY_ALIBI]


@dataclass(frozen=True)
class Cache:
    """Keys and values [blocks, block_tokens, kv_heads, head_dim]; NaN where nobody has written."""

    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor  # int32 [rows, max_blocks]


def random_cache(
    shape: Shape,
    contexts: list[int],
    dtype: torch.dtype,
    max_blocks: int = 0,
    by_head: bool = False,
) -> Cache:
    """Blocks in random order, each row's own; what lies behind a row's last token is NaN.

    by_head: a block's tokens of one KV head lie together; else, as in the server's cache, a token's
    heads do.
    """
    needed = [-(-each // BLOCK_TOKENS) for each in contexts]
    width = max(max_blocks, *needed, 1)
    blocks = sum(needed) + 2
    order = torch.randperm(blocks - 1) + 1  # block 0 belongs to nobody
    inner = (shape.kv_heads, BLOCK_TOKENS) if by_head else (BLOCK_TOKENS, shape.kv_heads)
    memory = torch.full((2, blocks, *inner, shape.head_dim), torch.nan)
    both = memory.transpose(2, 3) if by_head else memory
    tables = torch.zeros(len(contexts), width, dtype=torch.int32)
    first = 0
    for row, (tokens, count) in enumerate(zip(contexts, needed, strict=True)):
        own = order[first : first + count]
        tables[row, :count] = own
        first += count
        places = torch.arange(tokens)
        filled = torch.randn(2, tokens, shape.kv_heads, shape.head_dim)
        both[:, own[places // BLOCK_TOKENS], places % BLOCK_TOKENS] = filled
    memory = memory.to(DEVICE, dtype)
    keys, values = (memory.transpose(2, 3) if by_head else memory).unbind()
    return Cache(keys, values, tables.to(DEVICE))


def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of canaries within a larger one of canaries, its last dimensions contiguous."""
    memory = torch.full((shape[0] + 2, *shape[1:]), CANARY, dtype=dtype, device=DEVICE)
    return memory[1:-1]


def assert_guards_intact(tensor: torch.Tensor) -> None:
    """Nothing was written before or behind a tensor that `guarded` made."""
    whole = torch.as_strided(tensor, (tensor.shape[0] + 2, *tensor.shape[1:]), tensor.stride(), 0)
    assert (whole[0] == CANARY).all() and (whole[-1] == CANARY).all()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Also where both are NaN."""
    return torch.equal(a.nan_to_num(nan=CANARY), b.nan_to_num(nan=CANARY)) and torch.equal(
        a.isnan(), b.isnan()
    )
