"""QKV split, rotary positions and cache write, beside the same in torch's own operators."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.inputs import BLOCK_TOKENS, PagedCache, dtype_of, randn
from tiercel_kernels.benchmark.bounds import SHAPES, FalconShape
from tiercel_kernels.benchmark.case import Case, Inputs, difference, turns
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.benchmark.sweep import Sweep, Trial
from tiercel_kernels.fused.qkv_rotary_cache import qkv_rotary_cache, split_rows
from tiercel_kernels.reference import qkv_rotary_cache as reference
from tiercel_kernels.tuning.cards import nearest
from tiercel_kernels.tuning.qkv_rotary_cache import VARIANTS, QkvVariant

OP = "qkv_rotary_cache"
TOKENS = (1, 64, 256, 2048)
_POSITIONS = 4096
Rotation = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Projected:
    """What the QKV projection of one layer gave, and where it goes."""

    shape: FalconShape
    qkv: torch.Tensor
    rotation: Rotation | None
    positions: torch.Tensor
    slots: torch.Tensor
    cache: PagedCache

    @classmethod
    def random(
        cls, shape: FalconShape, tokens: int, device: torch.device, seed: int
    ) -> "Projected":
        generator = torch.Generator().manual_seed(seed)
        blocks = -(-4 * tokens // BLOCK_TOKENS)
        cache = PagedCache.random(shape, [blocks * BLOCK_TOKENS], device, seed)
        slots = torch.randperm(blocks * BLOCK_TOKENS, generator=generator)[:tokens]
        positions = torch.randint(0, _POSITIONS, (tokens,), generator=generator)
        dtype = dtype_of(device)
        return cls(
            shape,
            randn(tokens, shape.qkv_size, device=device, seed=seed, dtype=dtype),
            None if shape.alibi else _rotation(shape, device, dtype),
            positions.to(device),
            slots.to(device),
            cache,
        )

    @property
    def arguments(
        self,
    ) -> tuple[
        torch.Tensor, Rotation | None, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
    ]:
        cache = self.cache
        return self.qkv, self.rotation, self.positions, self.slots, cache.keys, cache.values

    def wrong(self, run: Callable[[], object]) -> str:
        """What differs from the reference, in the queries or in the cache."""
        queries = run()
        assert isinstance(queries, torch.Tensor)
        keys, values = self.cache.keys.clone(), self.cache.values.clone()
        self.cache.keys.zero_()
        self.cache.values.zero_()
        expected = reference.qkv_rotary_cache(*self.arguments)
        places = self.slots // BLOCK_TOKENS, self.slots % BLOCK_TOKENS
        problems = [difference(queries, expected)]
        for ours, theirs in ((keys, self.cache.keys), (values, self.cache.values)):
            problems.append(difference(ours[places], theirs[places]))
        return next((each for each in problems if each), "")


def _rotation(shape: FalconShape, device: torch.device, dtype: torch.dtype) -> Rotation:
    half = torch.arange(0, shape.head_dim, 2, device=device)
    angles = torch.arange(_POSITIONS, device=device).unsqueeze(1) * 10000.0 ** (
        -half / shape.head_dim
    )
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _in_torch(given: Projected) -> torch.Tensor:
    """The same in the operators that a model without the kernel would use."""
    shape, qkv = given.shape, given.qkv
    heads = qkv.view(len(qkv), -1, shape.head_dim)
    turned, values = heads[:, : -shape.kv_heads], heads[:, -shape.kv_heads :]
    if given.rotation is not None:
        cos, sin = (each[given.positions].unsqueeze(1) for each in given.rotation)
        low, high = turned.chunk(2, -1)
        turned = torch.cat((low * cos - high * sin, high * cos + low * sin), -1)
    queries, keys = turned[:, : shape.heads], turned[:, shape.heads :]
    places = given.slots // BLOCK_TOKENS, given.slots % BLOCK_TOKENS
    given.cache.keys.index_put_(places, keys)
    given.cache.values.index_put_(places, values)
    return queries.contiguous()


def case(shape: FalconShape, tokens: int) -> Case:
    """Tokens of one layer."""

    def prepare(device: torch.device, seed: int) -> Inputs:
        given = Projected.random(shape, tokens, device, seed)

        def run() -> torch.Tensor:
            return qkv_rotary_cache(*given.arguments)

        return Inputs(run, lambda: given.wrong(run), {"torch": lambda: _in_torch(given)})

    tables = 0 if shape.alibi else tokens * shape.head_dim * 2
    moved = 2 * tokens * shape.qkv_size * 2 + tables
    return Case(f"{shape.name}, {tokens} tokens", moved, prepare, resident_bytes=4 * moved)


def cases() -> list[Case]:
    return [case(shape, tokens) for tokens in TOKENS for shape in SHAPES.values()]


def sweep(shape: FalconShape, listed: list[QkvVariant], tokens: list[int]) -> Sweep:
    """Of the card's entry of the table, over numbers of tokens of one model."""

    def trial(count: int, device: torch.device) -> Trial:
        sets = turns(4 * count * shape.qkv_size, device)
        given = [Projected.random(shape, count, device, seed) for seed in range(sets)]

        def runner(one: Projected) -> Callable[[QkvVariant], Callable[[], object]]:
            return lambda point: lambda: split_rows(*one.arguments, point)

        def check(point: QkvVariant) -> str:
            return given[0].wrong(runner(given[0])(point))

        return Trial(f"{count} tokens", [runner(each) for each in given], check)

    return Sweep(
        shape.name,
        listed,
        {"block_heads": (1, 2, 4, 8, 16, 32), "num_warps": (1, 2, 4, 8)},
        lambda device: [trial(count, device) for count in tokens],
    )


def sweeps(capability: int) -> list[Sweep]:
    """One entry per card for all models: each model's own best, to choose a common one from."""
    listed = VARIANTS[nearest(VARIANTS, capability)]
    return [sweep(shape, listed, [1, 64, 2048]) for shape in SHAPES.values()]


if __name__ == "__main__":
    sys.exit(main(OP, cases(), sweeps))
