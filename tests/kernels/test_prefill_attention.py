"""Paged prefill attention against its specification: prompts, chunks, prefixes, canaries, bits."""

import pytest
import torch

from support.kernels import CANARY, DEVICE, DTYPES, HALVES, LONG_DTYPES
from support.paged import (
    ELEVEN,
    HUGE,
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
from tiercel_kernels.fused.prefill_attention import attend_slices, prefill_attention
from tiercel_kernels.reference import prefill_attention as reference
from tiercel_kernels.tuning.prefill_attention import FLOAT32, variant

Slices = list[tuple[int, int]]  # position of the first token, tokens


def _cache(shape: Shape, slices: Slices, dtype: torch.dtype) -> Cache:
    return random_cache(shape, [start + count for start, count in slices], dtype)


def _queries(shape: Shape, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(tokens, shape.heads, shape.head_dim).to(DEVICE, dtype)


def _prefill(
    shape: Shape, queries: torch.Tensor, cache: Cache, slices: Slices
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel and what the specification write."""
    counts = [count for _, count in slices]
    starts = torch.tensor([start for start, _ in slices], dtype=torch.int32, device=DEVICE)
    firsts = torch.tensor([0, *counts], device=DEVICE).cumsum(0).int()
    out, expected = (guarded(tuple(queries.shape), queries.dtype) for _ in range(2))
    arguments = (queries, cache.keys, cache.values, cache.tables, starts, firsts, max(counts))
    prefill_attention(*arguments, out, shape.slopes())
    reference.prefill_attention(*arguments, expected, shape.slopes())
    return out, expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_short_slices(shape: Shape, dtype: torch.dtype) -> None:
    """One token, an empty slice, a chunk behind a prefix, a last block with one token."""
    slices = [(0, 1), (9, 0), (130, 3), (11, 6)]
    cache = _cache(shape, slices, dtype)
    before = cache.keys.clone(), cache.values.clone()
    out, expected = _prefill(shape, _queries(shape, 12, dtype), cache, slices)
    assert_close(out[:10], expected[:10])
    assert (out[10:] == CANARY).all()  # padding behind the slices
    assert_guards_intact(out)
    assert same_bits(cache.keys, before[0]) and same_bits(cache.values, before[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [RANK, RW, ELEVEN], ids=lambda shape: shape.name)
def test_slices_of_one_head_per_tile(shape: Shape, dtype: torch.dtype) -> None:
    slices = [(0, 64), (77, 70)]
    cache = _cache(shape, slices, dtype)
    out, expected = _prefill(shape, _queries(shape, 134, dtype), cache, slices)
    assert_close(out, expected)
    assert_guards_intact(out)


@pytest.mark.parametrize("shape", WHOLE, ids=lambda shape: shape.name)
def test_all_heads_of_a_model(shape: Shape) -> None:
    slices = [(13, 5), (0, 1)]
    for dtype in HALVES:
        cache = _cache(shape, slices, dtype)
        out, expected = _prefill(shape, _queries(shape, 6, dtype), cache, slices)
        assert_close(out, expected)
        assert_guards_intact(out)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LONG_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "slices"),
    [(SEVEN, [(0, 70)]), (HUGE, [(150, 66), (0, 5)]), (RW, [(3900, 200)])],
    ids=["7b", "180b", "rw"],
)
def test_long_slices(shape: Shape, slices: Slices, dtype: torch.dtype) -> None:
    cache = _cache(shape, slices, dtype)
    tokens = sum(count for _, count in slices)
    out, expected = _prefill(shape, _queries(shape, tokens, dtype), cache, slices)
    assert_close(out, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_behind_a_long_prefix(dtype: torch.dtype) -> None:
    cache = _cache(RANK, [(4090, 10)], dtype)
    out, expected = _prefill(RANK, _queries(RANK, 10, dtype), cache, [(4090, 10)])
    assert_close(out, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [RANK, RW], ids=lambda shape: shape.name)
def test_a_slice_has_the_same_bits_whatever_the_batch(shape: Shape, dtype: torch.dtype) -> None:
    """Also beside a slice that is long enough for the other kind of tile."""
    slices = [(0, 80), (100, 9), (3, 1)]
    cache = _cache(shape, slices, dtype)
    queries = _queries(shape, 90, dtype)
    together, _ = _prefill(shape, queries, cache, slices)
    first = 0
    for i, (start, count) in enumerate(slices):
        own = slice(first, first + count)
        table = Cache(cache.keys, cache.values, cache.tables[i : i + 1])
        alone, _ = _prefill(shape, queries[own], table, [(start, count)])
        assert torch.equal(alone, together[own])
        first += count


def test_a_prompt_in_chunks_equals_the_whole() -> None:
    cache = _cache(RANK, [(0, 100)], torch.float32)
    queries = _queries(RANK, 100, torch.float32)
    whole, _ = _prefill(RANK, queries, cache, [(0, 100)])
    for start, end in ((0, 16), (16, 33), (33, 100)):
        chunk, _ = _prefill(RANK, queries[start:end], cache, [(start, end - start)])
        assert_close(chunk, whole[start:end])


def test_the_specification_refuses_a_slice_longer_than_it_was_told() -> None:
    cache = _cache(RANK, [(0, 5)], torch.float32)
    queries = _queries(RANK, 5, torch.float32)
    firsts = torch.tensor([0, 5], dtype=torch.int32)
    starts = torch.tensor([0], dtype=torch.int32)
    with pytest.raises(ValueError, match="slice 0 has 5 tokens, more than 4"):
        reference.prefill_attention(
            queries, cache.keys, cache.values, cache.tables, starts, firsts, 4, queries.clone()
        )


@pytest.mark.parametrize("shape", [RANK, RW], ids=lambda shape: shape.name)
def test_the_tiles_that_float32_has_on_a_gpu(shape: Shape) -> None:
    """In the interpreter float32 has those of serving, so that these would not be run there."""
    assert variant(90, 64, bytes_per_number=4) == FLOAT32 != variant(90, 64)
    cache = _cache(shape, [(5, 20)], torch.float32)
    queries = _queries(shape, 20, torch.float32)
    _, expected = _prefill(shape, queries, cache, [(5, 20)])
    starts, firsts = (
        torch.tensor(each, dtype=torch.int32, device=DEVICE) for each in ([5], [0, 20])
    )
    out = torch.empty_like(queries)
    arguments = (queries, cache.keys, cache.values, cache.tables, starts, firsts, 20, out)
    attend_slices(*arguments, shape.slopes(), FLOAT32)
    assert_close(out, expected)
