"""CpuAttention against dense softmax attention, over shapes, dtypes and mixtures of slices."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tiercel.attention import cpu
from tiercel.attention.backend import StepGeometry
from tiercel.attention.cache import KvCache
from tiercel.attention.cpu import AS_STORED, BATCHED_UNITS, Arithmetic, CpuAttention
from tiercel.attention.units import UNIT_TOKENS
from tiercel.layers.alibi import bias_table

BLOCK = 16
MAX_TOKENS = 1100
HEADS = [(3, 1, 64), (71, 1, 8), (8, 2, 16), (4, 4, 16), (1, 1, 4)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
STEPS = {  # (start, count) of each slice, decodes first
    "one": [(0, 1)],
    "one long": [(1023, 1)],
    "even": [(200 + i, 1) for i in range(8)],
    "skewed": [(1090, 1), *[(i, 1) for i in range(9)], (600, 1)],
    "prefill": [(0, 37)],
    "chunk": [(160, 33)],
    "chunk within a block": [(37, 20)],
    "mixed": [(5, 1), (99, 1), (0, 20), (64, 2), (500, 130)],
}


NO_POSITIONS = torch.empty(0, dtype=torch.int64)  # nothing is turned here: see tests/layers


class Scene:
    """Random keys and values of some rows, in a cache with shuffled blocks and in plain sight."""

    def __init__(self, slices: list[tuple[int, int]], heads: tuple[int, int, int]) -> None:
        self.slices = slices
        self.num_heads, self.kv, self.dim = heads
        torch.manual_seed(len(slices) + self.num_heads)
        rows = len(slices)
        per_row = -(-MAX_TOKENS // BLOCK)
        self.blocks = torch.randperm(rows * per_row).view(rows, per_row)
        self.contexts = [start + count for start, count in slices]
        self.keys = [torch.randn(n, self.kv, self.dim) for n in self.contexts]
        self.values = [torch.randn(n, self.kv, self.dim) for n in self.contexts]
        self.queries = [torch.randn(count, self.num_heads, self.dim) for _, count in slices]

    def cache(self, dtype: torch.dtype) -> KvCache:
        cache = KvCache(1, self.blocks.numel(), BLOCK, self.kv * self.dim, dtype)
        for table, keys, values in zip(self.blocks, self.keys, self.values, strict=True):
            places = torch.arange(len(keys))
            slots = table[places // BLOCK] * BLOCK + places % BLOCK
            cache.layers[0].slots[0, slots] = keys.flatten(1).to(dtype)
            cache.layers[0].slots[1, slots] = values.flatten(1).to(dtype)
        return cache

    def geometry(self, zero_block: int, padding: int = 0) -> StepGeometry:
        width = self.blocks.shape[1] + max(UNIT_TOKENS) // BLOCK
        tables = np.full((len(self.slices), width), zero_block, dtype=np.int64)
        for table, blocks, context in zip(tables, self.blocks, self.contexts, strict=True):
            held = -(-context // BLOCK)
            table[:held] = blocks[:held].numpy()
        starts, counts = np.array(self.slices, dtype=np.int64).T
        decodes = sum(count == 1 for count in counts)
        return StepGeometry(starts, counts, tables, decodes, padding, zero_block)

    def qkv(self, dtype: torch.dtype, padding: int = 0) -> torch.Tensor:
        """What the projection would have given for the new tokens."""
        new = [
            torch.cat((q, k[-len(q) :], v[-len(q) :]), dim=1)
            for q, k, v in zip(self.queries, self.keys, self.values, strict=True)
        ]
        empty = torch.full((padding, *new[0].shape[1:]), torch.nan)
        return torch.cat([*new, empty]).flatten(1).to(dtype)

    def expected(self, dtype: torch.dtype, bias: torch.Tensor | None) -> torch.Tensor:
        """Dense attention in float64 over the rounded inputs."""
        parts = []
        group = self.num_heads // self.kv
        for (start, count), q, k, v in zip(
            self.slices, self.queries, self.keys, self.values, strict=True
        ):
            q, k, v = (each.to(dtype).double() for each in (q, k, v))
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(self.dim)
            if bias is not None:
                scores += bias[:, None, : len(k)].double()
            ahead = torch.arange(len(k)) > torch.arange(start, start + count).unsqueeze(1)
            weights = scores.masked_fill(ahead, -torch.inf).softmax(-1)
            parts.append(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        return torch.cat(parts)


def backend(
    heads: tuple[int, int, int],
    bias: torch.Tensor | None = None,
    *,
    flash: bool = False,
    arithmetic: Arithmetic = AS_STORED,
) -> CpuAttention:
    attention = CpuAttention(*heads, block_tokens=BLOCK, bias=bias, arithmetic=arithmetic)
    if arithmetic is AS_STORED:  # otherwise it knows
        attention.flash_only = flash
    return attention


@pytest.mark.parametrize("alibi", [False, True], ids=["rotary", "alibi"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("step", list(STEPS))
def test_equals_dense_attention_in_float32(
    step: str, heads: tuple[int, int, int], alibi: bool
) -> None:
    check(STEPS[step], heads, torch.float32, alibi)


@pytest.mark.parametrize("flash", [False, True], ids=["batched", "flash"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("alibi", [False, True], ids=["rotary", "alibi"])
@pytest.mark.parametrize("heads", HEADS[:3], ids=str)
@pytest.mark.parametrize("step", ["one", "even", "skewed", "chunk within a block", "mixed"])
def test_equals_dense_attention_in_half_precision(
    step: str, heads: tuple[int, int, int], alibi: bool, dtype: torch.dtype, flash: bool
) -> None:
    check(STEPS[step], heads, dtype, alibi, flash=flash)


@pytest.mark.parametrize("decodes", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("alibi", [False, True], ids=["rotary", "alibi"])
@pytest.mark.parametrize("heads", HEADS[:3], ids=str)
@pytest.mark.parametrize("step", ["one", "even", "skewed", "chunk within a block", "mixed"])
def test_so_it_does_where_prompts_are_computed_in_float32(
    step: str, heads: tuple[int, int, int], alibi: bool, decodes: torch.dtype
) -> None:
    arithmetic = Arithmetic(torch.float32, decodes)
    check(STEPS[step], heads, torch.bfloat16, alibi, arithmetic=arithmetic)


def check(
    slices: list[tuple[int, int]],
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    alibi: bool,
    **ways: Any,
) -> None:
    bias = bias_table(heads[0], heads[2], MAX_TOKENS) if alibi else None
    scene = Scene(slices, heads)
    cache = scene.cache(dtype)
    attention = backend(heads, bias, **ways)
    plan = attention.plan(scene.geometry(cache.zero_block), NO_POSITIONS)
    result = attention.attend(scene.qkv(dtype), cache.layers[0], plan)
    assert result.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        result.double(), scene.expected(dtype, bias), rtol=tolerance, atol=tolerance
    )


def test_the_steps_above_reach_every_path() -> None:
    attention = backend(HEADS[0])

    def decodes(step: str) -> tuple[int, int]:
        plan = attention.plan(Scene(STEPS[step], HEADS[0]).geometry(9999), NO_POSITIONS)
        assert plan.decodes is not None
        return len(plan.decodes.row), plan.decodes.pieces

    assert decodes("one")[0] < BATCHED_UNITS <= decodes("even")[0]
    assert decodes("even")[1] == 1 < decodes("skewed")[1]


def test_padding_rows_are_zero_and_touch_nobody() -> None:
    scene = Scene(STEPS["mixed"], HEADS[0])
    cache = scene.cache(torch.float32)
    attention = backend(HEADS[0])
    plan = attention.plan(scene.geometry(cache.zero_block, padding=5), NO_POSITIONS)
    result = attention.attend(scene.qkv(torch.float32, padding=5), cache.layers[0], plan)
    assert torch.equal(result[-5:], torch.zeros(5, result.shape[1]))
    torch.testing.assert_close(
        result[:-5].double(), scene.expected(torch.float32, None), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("flash", [False, True], ids=["batched", "flash"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_rows_blocks_are_never_read(dtype: torch.dtype, flash: bool) -> None:
    """NaN everywhere but in the rows' own blocks; those that are read early are cleared first."""
    scene = Scene(STEPS["skewed"], HEADS[0])
    cache = scene.cache(dtype)
    own = {
        int(block)
        for table, context in zip(scene.blocks, scene.contexts, strict=True)
        for block in table[: -(-context // BLOCK)]
    }
    strangers = [block for block in range(cache.num_blocks) if block not in own]
    cache.layers[0].blocks[:, strangers] = torch.nan
    attention = backend(HEADS[0], flash=flash)
    plan = attention.plan(scene.geometry(cache.zero_block), NO_POSITIONS)
    result = attention.attend(scene.qkv(dtype), cache.layers[0], plan)
    assert result.isfinite().all()


class SeenProducts(TorchDispatchMode):
    """Notes the shapes of all batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        if func is torch.ops.aten.bmm.default:
            self.shapes.add((*args[0].shape, args[1].shape[2]))
        return func(*args, **kwargs or {})


def test_prompts_of_all_lengths_need_few_kernels() -> None:
    """oneDNN makes one for every shape: 800 prompts and chunks must not make thousands of them."""
    heads = (12, 1, 4)
    attention = backend(heads)
    cache = Scene([(0, MAX_TOKENS)], heads).cache(torch.bfloat16)
    with SeenProducts() as seen:
        for count in range(2, 402):
            for start in (0, 5 * count // 3):
                scene = Scene([(start, count)], heads)
                plan = attention.plan(scene.geometry(cache.zero_block), NO_POSITIONS)
                attention.attend(scene.qkv(torch.bfloat16), cache.layers[0], plan)
    # 4 numbers of queries, 20 lengths up to 1,024, 2 products
    assert 50 < len(seen.shapes) <= 4 * 21 * 2


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("step", ["chunk", "chunk within a block", "mixed"])
def test_a_chunk_cut_for_several_cores_is_the_same(
    monkeypatch: pytest.MonkeyPatch, step: str, heads: tuple[int, int, int]
) -> None:
    """The tests run on one core, which takes a chunk as it is."""
    asked = []

    def cut(rows: int, times: int, threads: int) -> int:
        asked.append((rows, times, threads))
        return next(parts for parts in (3, 2, 1) if rows % parts == 0)

    monkeypatch.setattr(cpu, "_equal_parts", cut)
    check(STEPS[step], heads, torch.float32, alibi=False)
    num_heads, kv, _ = heads
    assert {times for _, times, _ in asked} == {kv}
    assert asked[-1][0] == STEPS[step][-1][1] * num_heads // kv


def test_decodes_and_slices_are_computed_in_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    flash = cpu._flash

    def noting(queries: torch.Tensor, *args: Any, **masks: Any) -> Any:
        seen.add((queries.dtype, queries.shape[0]))
        return flash(queries, *args, **masks)

    monkeypatch.setattr(cpu, "_flash", noting)
    scene = Scene([(50 + row, 1) for row in range(8)] + [(64, 20)], HEADS[0])
    cache = scene.cache(torch.bfloat16)
    attention = backend(HEADS[0], arithmetic=Arithmetic(torch.float32, torch.bfloat16))
    plan = attention.plan(scene.geometry(cache.zero_block), NO_POSITIONS)
    result = attention.attend(scene.qkv(torch.bfloat16), cache.layers[0], plan)
    assert result.dtype is torch.bfloat16
    assert seen == {(torch.bfloat16, 8), (torch.float32, 1)}  # eight rows, and slices of one


@pytest.mark.parametrize(
    ("rows", "times", "threads", "parts"),
    [
        (1152, 1, 2, 2),
        (1152, 8, 2, 1),
        (1152, 2, 3, 3),
        (37 * 71, 1, 2, 1),
        (64, 1, 64, 2),
        (20, 1, 2, 1),
        (1152, 1, 7, 6),
    ],
)
def test_every_core_gets_as_many_rows_of_a_chunk(
    rows: int, times: int, threads: int, parts: int
) -> None:
    assert cpu._equal_parts(rows, times, threads) == parts


def test_clear_zeroes_the_given_blocks_in_all_layers() -> None:
    cache = KvCache(3, 5, BLOCK, 8, torch.bfloat16)
    for layer in cache.layers:
        layer.blocks[:, : cache.num_blocks] = torch.nan
    cache.clear([1, 4])
    for layer in cache.layers:
        finite = layer.slots.isfinite().view(2, 6, -1).all(-1)
        assert finite.tolist() == [[False, True, False, False, True, True]] * 2
    assert cache.nbytes == 3 * 2 * 6 * BLOCK * 8 * 2
