"""Paged decode attention: batches and contexts of every Falcon, and skewed lengths beside even."""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from benchmarks.inputs import (
    BLOCK_TOKENS,
    PagedCache,
    cache_bytes,
    dtype_of,
    randn,
    sample_rows,
    slopes,
)
from tiercel_kernels.benchmark.bounds import SHAPES, FalconShape
from tiercel_kernels.benchmark.case import Case, Inputs, difference, turns
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.benchmark.sweep import Sweep, Trial
from tiercel_kernels.fused.decode_attention import attend_units, decode_attention
from tiercel_kernels.fused.decode_plan import decode_plan
from tiercel_kernels.reference import decode_attention as reference
from tiercel_kernels.reference.decode_plan import DecodePlan
from tiercel_kernels.tuning.cards import nearest
from tiercel_kernels.tuning.decode_attention import (
    VARIANTS,
    DecodeVariant,
    kind,
    unit_tokens,
)

OP = "decode_attention"
BATCHES = (64, 256, 16, 1)  # the goals' first
CONTEXTS = (1024, 4096, 256)
SKEWED = [8192, *[256] * 63]
EVEN = [sum(SKEWED) // len(SKEWED)] * len(SKEWED)
# A dense copy of keys and values for SDPA; beyond this much there is none.
_RIVAL_BYTES = 4e9


@dataclass(frozen=True)
class Step:
    """The tensors of one layer of one step."""

    shape: FalconShape
    contexts: list[int]
    queries: torch.Tensor
    cache: PagedCache
    lengths: torch.Tensor
    out: torch.Tensor
    slopes: torch.Tensor | None

    @classmethod
    def random(
        cls, shape: FalconShape, contexts: list[int], device: torch.device, seed: int
    ) -> "Step":
        size = (len(contexts), shape.heads, shape.head_dim)
        queries = randn(*size, device=device, seed=seed + 1, dtype=dtype_of(device))
        return cls(
            shape,
            contexts,
            queries,
            PagedCache.random(shape, contexts, device, seed),
            torch.tensor(contexts, dtype=torch.int32, device=device),
            torch.empty_like(queries),
            slopes(shape, device),
        )

    def plan(self, unit: int) -> DecodePlan:
        """For tables as wide as a server's, so that the merge is always part of it."""
        width = self.cache.tables.shape[1] * BLOCK_TOKENS
        return decode_plan(self.lengths, unit, -(-width // unit))

    def call(self, plan: DecodePlan) -> Callable[[], object]:
        """The op as a model calls it."""
        return lambda: decode_attention(*self._arguments(plan), self.out, self.slopes)

    def call_as(self, plan: DecodePlan, chosen: DecodeVariant) -> Callable[[], object]:
        """The op with these launch parameters."""
        return lambda: attend_units(*self._arguments(plan), self.out, self.slopes, chosen)

    def _arguments(
        self, plan: DecodePlan
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, DecodePlan]:
        cache = self.cache
        return self.queries, cache.keys, cache.values, cache.tables, self.lengths, plan

    def wrong(self, plan: DecodePlan) -> str:
        """What differs from the reference in `out`, for a few rows."""
        rows = sample_rows(len(self.contexts))
        expected = torch.empty_like(self.out[rows])
        reference.decode_attention(
            self.queries[rows],
            self.cache.keys,
            self.cache.values,
            self.cache.tables[rows],
            self.lengths[rows],
            plan,
            expected,
            self.slopes,
        )
        return difference(self.out[rows], expected)


def _sdpa(step: Step, seed: int) -> Callable[[], object]:
    """torch's own over dense keys and values of equal rows, a group's heads as rows of a tile."""
    shape, rows, context = step.shape, len(step.contexts), step.contexts[0]
    size = (2, rows, shape.kv_heads, context, shape.head_dim)
    dense = randn(*size, device=step.queries.device, seed=seed, dtype=step.queries.dtype)
    queries = step.queries.view(rows, shape.kv_heads, shape.group, shape.head_dim)
    bias = None
    if step.slopes is not None:
        places = torch.arange(context, device=queries.device)
        slope = step.slopes.view(1, shape.kv_heads, shape.group, 1)
        bias = (slope * places * shape.head_dim**-0.5).to(queries.dtype)
    return lambda: functional.scaled_dot_product_attention(
        queries, dense[0], dense[1], attn_mask=bias
    )


def case(shape: FalconShape, contexts: list[int], name: str) -> Case:
    """Rows of these contexts through one layer."""
    tokens, rows = sum(contexts), len(contexts)
    cached = cache_bytes(shape, tokens)
    heads = 2 * rows * shape.heads * shape.head_dim * 2  # queries and output
    even = len(set(contexts)) == 1 and cached < _RIVAL_BYTES

    def prepare(device: torch.device, seed: int) -> Inputs:
        step = Step.random(shape, contexts, device, seed)
        plan = step.plan(unit_tokens(shape.group))
        call = step.call(plan)

        def check() -> str:
            call()
            return step.wrong(plan)

        rivals = {"SDPA, dense cache": _sdpa(step, seed)} if even else {}
        return Inputs(call, check, rivals)

    return Case(
        f"{shape.name}, {name}",
        cached + heads,
        prepare,
        flops=4 * shape.heads * shape.head_dim * tokens,
        resident_bytes=(2 if even else 1) * cached + heads,
    )


def cases() -> list[Case]:
    """The goals' batches and lengths of all models first."""
    shapes = list(SHAPES.values())
    skewed = [
        made
        for shape in shapes
        for made in (
            case(shape, SKEWED, "64 rows, one of 8192 among 63 of 256"),
            case(shape, EVEN, f"64 rows of {EVEN[0]}, as many keys"),
        )
    ]
    even = [
        case(shape, [context] * batch, f"{batch} x {context}")
        for batch, context, shape in itertools.product(BATCHES, CONTEXTS, shapes)
    ]
    return even[: len(shapes)] + skewed + even[len(shapes) :]


@dataclass(frozen=True)
class Point:
    """Launch parameters with the size of a unit, which the plan brings."""

    block_n: int
    num_warps: int
    num_stages: int
    programs_per_sm: int
    unit_tokens: int

    @property
    def variant(self) -> DecodeVariant:
        return DecodeVariant(self.block_n, self.num_warps, self.num_stages, self.programs_per_sm)


_VALUES = {
    "block_n": (16, 32, 64, 128, 256),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (2, 3, 4, 5, 6, 7),
    "programs_per_sm": (1, 2, 3, 4, 6, 8, 12),
    "unit_tokens": (128, 256, 512, 1024),
}


def _trial(shape: FalconShape, batch: int, context: int, device: torch.device) -> Trial:
    count = turns(cache_bytes(shape, batch * context), device)
    steps = [Step.random(shape, [context] * batch, device, seed) for seed in range(count)]
    # The same for all of them: they have the same lengths.
    plans = {unit: steps[0].plan(unit) for unit in _VALUES["unit_tokens"]}

    def runner(step: Step) -> Callable[[Point], Callable[[], object]]:
        return lambda point: step.call_as(plans[point.unit_tokens], point.variant)

    def check(point: Point) -> str:
        runner(steps[0])(point)()
        return steps[0].wrong(plans[point.unit_tokens])

    return Trial(f"{batch} x {context}", [runner(each) for each in steps], check)


def sweep(shape: FalconShape, listed: list[DecodeVariant], sizes: list[tuple[int, int]]) -> Sweep:
    """Of one entry of the table, over (batch, context) of a model of that kind."""
    unit = unit_tokens(shape.group)
    points = [
        Point(each.block_n, each.num_warps, each.num_stages, each.programs_per_sm, unit)
        for each in listed
    ]
    return Sweep(
        f"{kind(shape.group, shape.head_dim)}, {shape.name}",
        points,
        _VALUES,
        lambda device: [_trial(shape, *size, device) for size in sizes],
    )


def sweeps(capability: int) -> list[Sweep]:
    """One per model: 7b is the only one of its kind, 40b and 180b share theirs."""
    table = VARIANTS[nearest(VARIANTS, capability)]
    sizes = [(1, 1024), (64, 1024), (256, 1024)]
    return [
        sweep(shape, table[kind(shape.group, shape.head_dim)], sizes) for shape in SHAPES.values()
    ]


if __name__ == "__main__":
    sys.exit(main(OP, cases(), sweeps))
