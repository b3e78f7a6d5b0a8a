"""Paged decode attention against its specification: shapes, lengths, canaries, the same bits."""

import pytest
import torch

from support.kernels import DEVICE, DTYPES, HALVES, Allocations
from support.paged import (
    ELEVEN,
    FORTY,
    RANK,
    RW,
    SEVEN,
    SHAPES,
    WHOLE,
    Cache,
    Shape,
    assert_close,
    assert_guards_intact,
    guarded,
    random_cache,
    same_bits,
)
from tiercel_kernels.fused.decode_attention import attend_units, decode_attention, tile_rows
from tiercel_kernels.fused.decode_plan import decode_plan
from tiercel_kernels.reference import decode_attention as reference
from tiercel_kernels.tuning.decode_attention import FLOAT32, unit_tokens, variant


def _decode(
    shape: Shape, queries: torch.Tensor, cache: Cache, contexts: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel and what the specification write."""
    lengths = torch.tensor(contexts, dtype=torch.int32, device=DEVICE)
    unit = unit_tokens(shape.heads // shape.kv_heads)
    plan = decode_plan(lengths, unit, -(-cache.tables.shape[1] * 16 // unit))
    out, expected = (guarded(tuple(queries.shape), queries.dtype) for _ in range(2))
    arguments = (queries, cache.keys, cache.values, cache.tables, lengths, plan)
    decode_attention(*arguments, out, shape.slopes())
    reference.decode_attention(*arguments, expected, shape.slopes())
    return out, expected


def _queries(shape: Shape, rows: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, shape.heads, shape.head_dim).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_equals_the_specification(shape: Shape, dtype: torch.dtype) -> None:
    """One token, an empty slot, a last block with one token, whole units and one key more."""
    torch.manual_seed(len(shape.name))
    unit = unit_tokens(shape.heads // shape.kv_heads)
    contexts = [1, 0, 17, unit, 2 * unit + 1]
    cache = random_cache(shape, contexts, dtype)
    before = cache.keys.clone(), cache.values.clone()
    out, expected = _decode(shape, _queries(shape, len(contexts), dtype), cache, contexts)
    assert_close(out, expected)
    assert (out[1] == 0).all()
    assert_guards_intact(out)
    assert same_bits(cache.keys, before[0]) and same_bits(cache.values, before[1])


@pytest.mark.parametrize("shape", WHOLE, ids=lambda shape: shape.name)
def test_all_heads_of_a_model(shape: Shape) -> None:
    contexts = [unit_tokens(shape.heads // shape.kv_heads) + 3, 1]
    for dtype in HALVES:
        cache = random_cache(shape, contexts, dtype)
        with Allocations() as made:
            out, expected = _decode(shape, _queries(shape, 2, dtype), cache, contexts)
        assert made.intact()
        assert_close(out, expected)
        assert_guards_intact(out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SEVEN, RW, RANK], ids=lambda shape: shape.name)
def test_long_contexts(shape: Shape, dtype: torch.dtype) -> None:
    contexts = [4100, 2048]
    cache = random_cache(shape, contexts, dtype, max_blocks=300)
    out, expected = _decode(shape, _queries(shape, 2, dtype), cache, contexts)
    assert_close(out, expected)


@pytest.mark.parametrize("shape", [RW, RANK], ids=lambda shape: shape.name)
def test_a_table_of_one_unit_needs_no_merge(shape: Shape) -> None:
    contexts = [100, 0, 256]
    cache = random_cache(shape, contexts, torch.float32)
    assert cache.tables.shape[1] * 16 == 256
    out, expected = _decode(shape, _queries(shape, 3, torch.float32), cache, contexts)
    assert_close(out, expected)
    assert (out[1] == 0).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [SEVEN, ELEVEN, RW], ids=lambda shape: shape.name)
def test_a_row_has_the_same_bits_whatever_the_batch(shape: Shape, dtype: torch.dtype) -> None:
    unit = unit_tokens(shape.heads // shape.kv_heads)
    contexts = [unit + 70, 1, 0, 100, unit + 1]
    cache = random_cache(shape, contexts, dtype)
    queries = _queries(shape, len(contexts), dtype)
    together, _ = _decode(shape, queries, cache, contexts)
    for rows in ([0], [4, 3], [3, 2, 2, 1, 4]):
        some = Cache(cache.keys, cache.values, cache.tables[rows].contiguous())
        alone, _ = _decode(shape, queries[rows], some, [contexts[row] for row in rows])
        assert torch.equal(alone, together[rows])


def test_keys_in_either_order_of_memory() -> None:
    """A token's heads together, as in the server's cache, or a block's tokens by head."""
    contexts = [40, 300]
    torch.manual_seed(0)
    first = random_cache(FORTY, contexts, torch.float32)
    torch.manual_seed(0)
    second = random_cache(FORTY, contexts, torch.float32, by_head=True)
    assert first.keys.stride() != second.keys.stride()
    queries = _queries(FORTY, 2, torch.float32)
    out, _ = _decode(FORTY, queries, first, contexts)
    again, _ = _decode(FORTY, queries, second, contexts)
    assert torch.equal(out, again)


def test_rows_may_share_blocks_and_queries_may_be_a_view() -> None:
    """A cached prefix is the same blocks in two tables; queries may lie beside keys and values."""
    cache = random_cache(RANK, [60], torch.float32)
    shared = Cache(cache.keys, cache.values, cache.tables.expand(3, -1))
    wide = torch.randn(3, RANK.heads + 2, RANK.head_dim, device=DEVICE)
    out, expected = _decode(RANK, wide[:, : RANK.heads], shared, [60, 48, 33])
    assert_close(out, expected)


def test_scores_far_apart_do_not_overflow() -> None:
    cache = random_cache(RANK, [300], torch.float32)
    out, expected = _decode(RANK, 200 * _queries(RANK, 1, torch.float32), cache, [300])
    assert out.isfinite().all()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-3)  # scores of 1,000s: less is left


def test_a_head_that_is_no_power_of_two_is_refused() -> None:
    shape = Shape("odd", 4, 1, head_dim=48)
    cache = random_cache(shape, [5], torch.float32)
    with pytest.raises(ValueError, match="head_dim is 48; the kernels need a power of two"):
        _decode(shape, _queries(shape, 1, torch.float32), cache, [5])


def test_tiles_waste_little() -> None:
    groups = {71: (64, 16), 72: (64, 16), 36: (32, 16), 29: (32, 0), 16: (16, 0), 4: (16, 0)}
    assert {group: tile_rows(group) for group in groups} == groups
    for group in range(1, 257):
        first, second = tile_rows(group)
        assert first + second >= group
        assert {first, second} <= {0, 16, 32, 64, 128, 256}


@pytest.mark.parametrize("shape", [SEVEN, RW], ids=lambda shape: shape.name)
def test_the_tiles_that_float32_has_on_a_gpu(shape: Shape) -> None:
    """In the interpreter float32 has those of serving, so that these would not be run there."""
    assert variant(90, 71, 64, bytes_per_number=4) == FLOAT32 != variant(90, 71, 64)
    cache = random_cache(shape, [37, 1], torch.float32)
    queries = _queries(shape, 2, torch.float32)
    _, expected = _decode(shape, queries, cache, [37, 1])
    lengths = torch.tensor([37, 1], dtype=torch.int32, device=DEVICE)
    out = torch.empty_like(queries)
    plan = decode_plan(lengths, 256, 1)
    arguments = (queries, cache.keys, cache.values, cache.tables, lengths, plan, out)
    attend_units(*arguments, shape.slopes(), FLOAT32)
    assert_close(out, expected)
