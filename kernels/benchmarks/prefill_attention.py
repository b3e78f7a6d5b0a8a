"""Paged prefill attention: whole prompts, chunks behind a past, many short slices."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from benchmarks.inputs import PagedCache, cache_bytes, dtype_of, randn, slopes
from tiercel_kernels.benchmark.bounds import SHAPES, FalconShape
from tiercel_kernels.benchmark.case import Case, Inputs, difference
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.benchmark.sweep import Sweep, Trial
from tiercel_kernels.fused.prefill_attention import attend_slices, prefill_attention
from tiercel_kernels.reference import prefill_attention as reference
from tiercel_kernels.tuning.cards import nearest
from tiercel_kernels.tuning.prefill_attention import VARIANTS, PrefillVariant

OP = "prefill_attention"
Slices = list[tuple[int, int]]  # position of the first token, tokens
SIZES: dict[str, Slices] = {
    "one prompt of 2048": [(0, 2048)],
    "4 prompts of 512": [(0, 512)] * 4,
    "a chunk of 256 behind 1792": [(1792, 256)],
    "16 prompts of 128": [(0, 128)] * 16,
    "64 slices of 16 behind 512": [(512, 16)] * 64,
    "8 prompts of 2048": [(0, 2048)] * 8,
}


@dataclass(frozen=True)
class Chunk:
    """The tensors of one layer of one step."""

    shape: FalconShape
    slices: Slices
    queries: torch.Tensor
    cache: PagedCache
    starts: torch.Tensor
    firsts: torch.Tensor
    out: torch.Tensor
    slopes: torch.Tensor | None

    @classmethod
    def random(cls, shape: FalconShape, slices: Slices, device: torch.device, seed: int) -> "Chunk":
        counts = [count for _, count in slices]
        size = (sum(counts), shape.heads, shape.head_dim)
        queries = randn(*size, device=device, seed=seed + 1, dtype=dtype_of(device))
        ends = [start + count for start, count in slices]
        return cls(
            shape,
            slices,
            queries,
            PagedCache.random(shape, ends, device, seed),
            torch.tensor([start for start, _ in slices], dtype=torch.int32, device=device),
            torch.tensor([0, *counts], device=device).cumsum(0).int(),
            torch.empty_like(queries),
            slopes(shape, device),
        )

    def call(self) -> Callable[[], object]:
        """The op as a model calls it."""
        return lambda: prefill_attention(*self._arguments(), self.out, self.slopes)

    def call_as(self, chosen: PrefillVariant) -> Callable[[], object]:
        """The op with these launch parameters."""
        return lambda: attend_slices(*self._arguments(), self.out, self.slopes, chosen)

    def _arguments(
        self,
    ) -> tuple[
        torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int
    ]:
        cache, longest = self.cache, max(count for _, count in self.slices)
        tables = (cache.keys, cache.values, cache.tables)
        return self.queries, *tables, self.starts, self.firsts, longest

    def wrong(self) -> str:
        """What differs from the reference in `out`: the last tokens of the last slice."""
        start, count = self.slices[-1]
        tail = min(count, 8)
        expected = torch.empty_like(self.out[-tail:])
        reference.prefill_attention(
            self.queries[-tail:],
            self.cache.keys,
            self.cache.values,
            self.cache.tables[-1:],
            torch.tensor([start + count - tail], dtype=torch.int32),
            torch.tensor([0, tail], dtype=torch.int32),
            tail,
            expected,
            self.slopes,
        )
        return difference(self.out[-tail:], expected)


def _sdpa(chunk: Chunk, seed: int) -> Callable[[], object]:
    """torch's own on equal prompts without a past: keys and values dense, of every query head."""
    shape, prompts, count = chunk.shape, len(chunk.slices), chunk.slices[0][1]
    size = (3, prompts, shape.heads, count, shape.head_dim)
    dense = randn(*size, device=chunk.queries.device, seed=seed, dtype=chunk.queries.dtype)
    return lambda: functional.scaled_dot_product_attention(
        dense[0], dense[1], dense[2], is_causal=True
    )


def case(shape: FalconShape, slices: Slices, name: str) -> Case:
    """Slices through one layer."""
    tokens = sum(count for _, count in slices)
    heads = 2 * tokens * shape.heads * shape.head_dim * 2  # queries and output
    cached = cache_bytes(shape, sum(start + count for start, count in slices))
    pairs = sum(count * start + count * (count + 1) / 2 for start, count in slices)
    plain = len(set(slices)) == 1 and slices[0][0] == 0 and not shape.alibi

    def prepare(device: torch.device, seed: int) -> Inputs:
        chunk = Chunk.random(shape, slices, device, seed)
        call = chunk.call()

        def check() -> str:
            call()
            return chunk.wrong()

        rivals = {"SDPA, all heads dense": _sdpa(chunk, seed)} if plain else {}
        return Inputs(call, check, rivals)

    return Case(
        f"{shape.name}, {name}",
        cached + heads,
        prepare,
        flops=4 * shape.heads * shape.head_dim * pairs,
        resident_bytes=cached + 3 * heads,
    )


def cases() -> list[Case]:
    """Every size for every model."""
    return [
        case(shape, slices, name) for name, slices in SIZES.items() for shape in SHAPES.values()
    ]


_VALUES = {
    "block_m": (32, 64, 128, 256),
    "block_n": (16, 32, 64, 128),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3, 4, 5),
}


def _trial(shape: FalconShape, name: str, slices: Slices, device: torch.device) -> Trial:
    chunk = Chunk.random(shape, slices, device, 0)

    def check(point: PrefillVariant) -> str:
        chunk.call_as(point)()
        return chunk.wrong()

    return Trial(name, [chunk.call_as], check)


def sweep(shape: FalconShape, listed: list[PrefillVariant], sizes: dict[str, Slices]) -> Sweep:
    """Of one entry of the table, over some sizes of a model with such heads."""
    return Sweep(
        f"{shape.head_dim}, {shape.name}",
        listed,
        _VALUES,
        lambda device: [_trial(shape, *size, device) for size in sizes.items()],
    )


def sweeps(capability: int) -> list[Sweep]:
    """Heads of 64: 7b and 40b; of 128: 11b."""
    table = VARIANTS[nearest(VARIANTS, capability)]
    sizes = {name: SIZES[name] for name in list(SIZES)[:3]}
    return [
        sweep(SHAPES[name], table[SHAPES[name].head_dim], sizes)
        for name in ("falcon-7b", "falcon-11b", "falcon-40b")
    ]


if __name__ == "__main__":
    sys.exit(main(OP, cases(), sweeps))
