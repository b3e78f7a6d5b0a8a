"""Attention on the CPU, made for caches with few KV heads.

The query heads of a KV head are folded into the query length, so that keys and values are never
repeated. Rows that decode run together, cut into units of equal length; longer slices run one by
one. Two ways to multiply: torch's flash kernel, and in bfloat16 oneDNN's batched GEMMs, where the
CPU has them and no AMX.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from tiercel.attention.backend import IntArray, StepGeometry
from tiercel.attention.cache import LayerCache
from tiercel.attention.units import UNIT_TOKENS, cut, few_lengths, key_mask, unit_blocks
from tiercel.layers.rotary import Rotary, Rotation, rotate_
from tiercel.layers.widened import has_tiles

# Returns the output and the natural logarithm of the softmax's sum. Masks broadcast, and a causal
# call may have a mask besides.
_flash: Callable[..., tuple[torch.Tensor, torch.Tensor]] = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
)


# In bfloat16 oneDNN's batched GEMMs beat the flash kernel, whose own GEMMs are small; they round
# scores to bfloat16, as transformers' eager attention does. Measured on one Zen 4 core, torch 2.13.
# Decoding needs some units for that, and one KV head, since keys with a stride are slow: 3 query
# heads, 16 rows of 464 keys 158 us against 343, 16 of 128 74 against 118, 4 of 256 the same, one of
# 400 45 against 27.
# With AMX the flash kernel's own GEMMs run in tiles (oneDNN's for prompts, MKL's for decoding), and
# it is faster throughout. Two cores, ms batched / flash: 12 query heads and 1,500 tokens 16 / 8.0,
# 256 behind 1,024 3.9 / 2.0, 71 heads and 1,024 behind 1,024 159 / 58, 8 times 16 heads 244 / 114;
# decoding with 12 query heads, 8 rows of 128 keys 0.19 / 0.11, 16 of 464 0.57 / 0.44.
BATCHED_UNITS = 5
# Slices go in blocks of queries of about so many rows, so that the scores stay in the cache: 12
# query heads and 1,500 tokens 53 ms against 77, 256 tokens behind 1,024 9 against 15, 71 heads and
# 1,000 tokens 81 against 186, 8 times 16 heads and 256 tokens 14 against 32. All layers of a 146M
# model on two cores, 12 heads in blocks of 128 tokens rather than 64: a prompt of 1,500 in chunks
# of 96 480 ms against 575, at once 278 to 342 against 352. 8 times 16 heads gain nothing from 128
# (256 behind 1,024 73 against 53: the scores outgrow what malloc keeps), so it is no more rows than
# this.
QUERY_ROWS = 1536
QUERY_TOKENS = (32, 128)  # of a block: the least and the most
QUERY_STEP = 16  # and what their number is a multiple of
LEAST_ROWS = 32  # of one core in the flash kernel, whose smallest block has so many


class Arithmetic(NamedTuple):
    """What attention computes in; None: what the cache holds."""

    slices: torch.dtype | None = None  # of several tokens
    decodes: torch.dtype | None = None


AS_STORED = Arithmetic()


@dataclass(frozen=True, slots=True)
class _Decodes:
    rows: int
    pages: torch.Tensor  # see _pages: [2 * units * blocks per unit]
    unit_tokens: int
    mask: torch.Tensor  # float32 [units, 1, 1, keys], with ALiBi [units, kv, queries per kv, keys]
    row: torch.Tensor  # [units]
    place: torch.Tensor  # [units], the unit's place in a [rows * pieces] table
    pieces: int


@dataclass(frozen=True, slots=True)
class _Slice:
    first: int  # of the step's tokens
    start: int
    count: int
    pages: torch.Tensor  # see _pages: those that hold tokens [0, start + count), and zeros behind
    keys: int  # tokens in them


@dataclass(frozen=True, slots=True)
class _Plan:
    decodes: _Decodes | None
    slices: list[_Slice]
    padding: int
    rotation: Rotation | None  # of all tokens, padding included


class CpuAttention:
    """See AttentionBackend. `rotary`: for models that turn queries and keys; `bias`: ALiBi's table,
    float32 [heads, positions], for those that do not.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        block_tokens: int,
        rotary: Rotary | None = None,
        bias: torch.Tensor | None = None,
        arithmetic: Arithmetic = AS_STORED,
    ) -> None:
        # torch's kernel for bfloat16, too; may be set. With two types oneDNN lacks that of decodes.
        self.flash_only = has_tiles() or arithmetic.slices is not arithmetic.decodes
        self._heads = num_heads
        self._kv = num_kv_heads
        self._group = num_heads // num_kv_heads
        self._dim = head_dim
        self._scale = head_dim**-0.5
        self._block_tokens = block_tokens
        tokens = 1 << max(1, QUERY_ROWS // self._group).bit_length() - 1
        self._query_tokens = min(max(tokens, QUERY_TOKENS[0]), QUERY_TOKENS[1])
        behind = self._query_tokens + max(UNIT_TOKENS)
        ahead = torch.full((self._query_tokens, behind), -torch.inf).triu(1)
        self._ahead = ahead.bfloat16()  # -inf where a key comes after the query
        self._rotary = rotary
        self._arithmetic = arithmetic
        self._bias = None if bias is None else _padded(bias).view(num_kv_heads, self._group, -1)

    @property
    def nbytes(self) -> int:
        """See AttentionBackend."""
        tables = (self._rotary, self._bias)
        return sum(each.nbytes for each in tables if each is not None)

    def plan(self, geometry: StepGeometry, positions: torch.Tensor) -> _Plan:
        """Everything the layers of one step share; lives as long as the step.

        positions: int64 [tokens + padding], each token's place in its own sequence.
        """
        decodes = self._plan_decodes(geometry) if geometry.decodes else None
        slices = []
        first = geometry.decodes
        for i in range(geometry.decodes, len(geometry.counts)):
            start, count = int(geometry.starts[i]), int(geometry.counts[i])
            keys = few_lengths(start + count, self._block_tokens)
            blocks = geometry.block_tables[i, : -(-keys // self._block_tokens)]
            pages = _pages(blocks, geometry.zero_block)
            slices.append(_Slice(first, start, count, pages, len(blocks) * self._block_tokens))
            first += count
        rotation = None if self._rotary is None else self._rotary.at(positions)
        return _Plan(decodes, slices, geometry.padding, rotation)

    def _plan_decodes(self, geometry: StepGeometry) -> _Decodes:
        rows = geometry.decodes
        contexts = geometry.starts[:rows] + 1
        units = cut(contexts, self._block_tokens, self._kv, torch.get_num_threads())
        mask = torch.from_numpy(key_mask(units, contexts)).view(-1, 1, 1, units.tokens)
        if self._bias is not None:
            mask = mask + self._unit_bias(self._bias, units.tokens, torch.from_numpy(units.piece))
        return _Decodes(
            rows=rows,
            pages=_pages(unit_blocks(units, geometry, self._block_tokens), geometry.zero_block),
            unit_tokens=units.tokens,
            mask=mask,
            row=torch.from_numpy(units.row),
            place=torch.from_numpy(units.row * units.pieces + units.piece),
            pieces=units.pieces,
        )

    def _unit_bias(self, bias: torch.Tensor, tokens: int, piece: torch.Tensor) -> torch.Tensor:
        """The bias of each unit's keys: [units, kv, queries per kv, tokens]."""
        whole = bias.shape[-1] // tokens * tokens
        table = bias[..., :whole].reshape(self._kv, self._group, -1, tokens)
        return table.index_select(2, piece).permute(2, 0, 1, 3)

    def store(
        self, qkv: torch.Tensor, cache: LayerCache, slots: torch.Tensor, plan: _Plan
    ) -> torch.Tensor:
        """See AttentionBackend. `slots` are those of the tokens, without padding. Returns `qkv`."""
        if plan.rotation is not None:
            heads = qkv.view(qkv.shape[0], -1, self._dim)
            rotate_(heads[:, : self._heads + self._kv], plan.rotation)
        new = qkv[: slots.shape[0], self._heads * self._dim :]
        pairs = new.view(-1, 2, self._kv * self._dim).transpose(0, 1)
        cache.slots.index_copy_(1, slots, pairs)
        return qkv

    def attend(
        self,
        qkv: torch.Tensor,
        cache: LayerCache,
        plan: _Plan,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See AttentionBackend. `qkv` is what `store` returned."""
        heads = qkv.view(qkv.shape[0], -1, self._dim)  # [tokens, heads + 2 kv, dim]
        parts = []
        if plan.decodes is not None:
            parts.append(self._decode(heads, cache, plan.decodes).to(qkv.dtype))
        for each in plan.slices:
            own = heads[each.first : each.first + each.count]
            parts.append(self._slice(_in(self._arithmetic.slices, own), cache, each).to(qkv.dtype))
        if plan.padding:
            parts.append(heads.new_zeros(plan.padding, self._heads * self._dim))
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return attended if out is None else out.copy_(attended)

    def _decode(self, heads: torch.Tensor, cache: LayerCache, step: _Decodes) -> torch.Tensor:
        queries = _in(self._arithmetic.decodes, heads[: step.rows, : self._heads])
        queries = queries.view(step.rows, self._kv, self._group, -1)
        if step.pieces > 1:
            queries = queries.index_select(0, step.row)
        keys, values = self._gather(cache, step.pages, step.unit_tokens, self._arithmetic.decodes)
        batched = self._kv == 1 and keys.shape[0] >= BATCHED_UNITS and not self.flash_only
        if batched and keys.dtype is torch.bfloat16:
            out, lse = self._batched(queries, keys, values, step)
        else:
            out, lse = _flash(queries, keys, values, 0.0, False, attn_mask=step.mask)
        if step.pieces > 1:
            out = self._merge(out, lse, step)
        return out.reshape(step.rows, -1)

    def _batched(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: _Decodes
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As _flash, for one KV head; the log-sum is only right where units are merged."""
        keys, values = keys.squeeze(1), values.squeeze(1)
        scores = torch.bmm(queries.squeeze(1), keys.transpose(1, 2))
        scores = torch.add(step.mask.squeeze(1), scores, alpha=self._scale)  # float32
        weights = scores.softmax(-1)
        out = torch.bmm(weights.to(values.dtype), values).unsqueeze(1)
        if step.pieces == 1:
            return out, scores
        # The largest weight is exp(largest score - log-sum).
        return out, (scores.amax(-1) - weights.amax(-1).log()).unsqueeze(1)

    def _merge(self, out: torch.Tensor, lse: torch.Tensor, step: _Decodes) -> torch.Tensor:
        """Units of a row into one, each weighted by its share of the softmax's sum.

        out: [units, kv, queries per kv, dim] and lse, the same without dim -> [rows, heads, dim].
        """
        table = lse.new_full((step.rows * step.pieces, self._heads), -torch.inf)
        table.index_copy_(0, step.place, lse.reshape(-1, self._heads))
        shares = table.view(step.rows, step.pieces, -1).softmax(1).view_as(table)
        weighted = out.reshape(-1, self._heads, self._dim) * shares.index_select(
            0, step.place
        ).unsqueeze(-1)
        merged = weighted.new_zeros(step.rows, self._heads, self._dim)
        return merged.index_add_(0, step.row, weighted).to(out.dtype)

    def _slice(self, own: torch.Tensor, cache: LayerCache, part: _Slice) -> torch.Tensor:
        """One slice of several tokens: causal over itself, and over all of its cached prefix.

        own: [count, heads + 2 kv, dim] -> [count, heads * dim].
        """
        queries = own[:, : self._heads].view(part.count, self._kv, self._group, self._dim)
        if self._bias is None and own.dtype is torch.bfloat16 and not self.flash_only:
            return self._blocked(queries.transpose(0, 1), cache, part)
        queries = queries.permute(1, 2, 0, 3)
        pairs = own[:, self._heads :].view(part.count, 2, self._kv, self._dim)
        keys, values = pairs.permute(1, 2, 0, 3)
        out, lse = _flash(
            queries,  # [kv, queries per kv, count, dim]
            self._repeat(keys),
            self._repeat(values),
            0.0,
            True,
            attn_mask=self._slice_bias(part.start, part.count),
        )
        if part.start:
            before, before_lse = self._prefix(queries, cache, part)
            share = torch.sigmoid(before_lse - lse).unsqueeze(-1).to(out.dtype)
            out = torch.lerp(out, before, share)
        return out.permute(2, 0, 1, 3).reshape(part.count, -1)

    def _prefix(
        self, queries: torch.Tensor, cache: LayerCache, part: _Slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum of a slice over its cached prefix only: all of it is visible."""
        keys, values = self._context(cache, part)
        keys, values = keys[:, : part.start], values[:, : part.start]
        bias = self._slice_bias(0, part.start)
        if bias is not None:
            out, lse = _flash(
                queries, self._repeat(keys), self._repeat(values), 0.0, False, attn_mask=bias
            )
            return out, lse
        # Tall queries give larger GEMMs than those of single heads: 12 heads and 96 tokens on 704 /
        # 1,360 keys 3.16 / 4.96 ms against 3.46 / 5.55 on two Zen 3 cores. One for each core: as a
        # single one it is 4.07 / 6.29, since the kernel cuts it into five blocks of rows. Of whole
        # steps (146M, 8 rows beside it) that is 2 and 5%, of shorter chunks 1%.
        parts = 1
        if queries.dtype is torch.float32:  # nothing else has been measured
            parts = _equal_parts(part.count * self._group, self._kv, torch.get_num_threads())
        folded = queries.transpose(1, 2).reshape(self._kv, parts, -1, self._dim)
        keys, values = (each.unsqueeze(1).expand(-1, parts, -1, -1) for each in (keys, values))
        out, lse = _flash(folded, keys, values, 0.0, False)
        shape = (self._kv, part.count, self._group)
        return (
            out.reshape(*shape, self._dim).transpose(1, 2),
            lse.reshape(shape).transpose(1, 2),
        )

    def _blocked(self, queries: torch.Tensor, cache: LayerCache, part: _Slice) -> torch.Tensor:
        """One slice in bfloat16: queries [kv, count, queries per kv, dim] -> [count, heads * dim].

        All keys come from the cache, where the slice's own have just been written.
        """
        keys, values = (each.contiguous() for each in self._context(cache, part))
        tokens = -(-part.count // QUERY_STEP) * QUERY_STEP
        padded = queries.new_zeros(self._kv, tokens, *queries.shape[2:])
        torch.mul(queries, self._scale, out=padded[:, : part.count])
        parts = []
        for first in range(0, tokens, self._query_tokens):
            count = min(self._query_tokens, tokens - first)
            begin = part.start + first
            end = few_lengths(min(begin + count, part.start + part.count), self._block_tokens)
            block = padded[:, first : first + count].reshape(self._kv, -1, self._dim)
            scores = torch.bmm(block, keys[:, :end].transpose(1, 2))
            latest = scores.view(self._kv, count, self._group, end)[..., begin:]
            latest += self._ahead[:count, : end - begin].unsqueeze(1)
            out = torch.bmm(scores.softmax(-1), values[:, :end])
            parts.append(out.view(self._kv, count, -1).transpose(0, 1).reshape(count, -1))
        return torch.cat(parts)[: part.count]

    def _context(self, cache: LayerCache, part: _Slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a row up to the end of its slice: [kv, at least that many, dim]."""
        keys, values = self._gather(cache, part.pages, part.keys, self._arithmetic.slices)
        return keys[0], values[0]

    def _gather(
        self, cache: LayerCache, pages: torch.Tensor, tokens: int, dtype: torch.dtype | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of pieces of `tokens` each: two views [pieces, kv, tokens, dim]."""
        read = cache.blocks.flatten(0, 1).index_select(0, pages)
        read = read.view(2, -1, tokens, self._kv, self._dim)
        keys, values = _in(dtype, read).transpose(2, 3).unbind()
        return keys, values

    def _repeat(self, tensor: torch.Tensor) -> torch.Tensor:
        """[kv, keys, dim] -> [kv, queries per kv, keys, dim], all over the same memory."""
        return tensor.unsqueeze(1).expand(-1, self._group, -1, -1)

    def _slice_bias(self, start: int, count: int) -> torch.Tensor | None:
        """[kv, queries per kv, 1, count]: a key's bias is the same for every query."""
        if self._bias is None:
            return None
        return self._bias[..., start : start + count].unsqueeze(2)


def _pages(blocks: IntArray, zero_block: int) -> torch.Tensor:
    """The keys of these blocks, then their values, among all blocks of keys and then of values.

    So one gather takes both along the first dimension, which torch does in 33 us where the second
    takes 77 (16 rows of 256 keys, two Zen 3 cores): 1% of a step of 146M.
    """
    return torch.from_numpy(np.concatenate((blocks, blocks + (zero_block + 1))))


def _equal_parts(rows: int, times: int, threads: int) -> int:
    """In how many parts of one length to cut `rows` rows, which are there `times` times, so that
    all threads get as many; fewer where that does not come out even or leaves little to each.
    """
    wanted = min(threads // math.gcd(threads, times), max(1, rows // LEAST_ROWS))
    return next(parts for parts in range(wanted, 0, -1) if rows % parts == 0)


def _in(dtype: torch.dtype | None, tensor: torch.Tensor) -> torch.Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def _padded(bias: torch.Tensor) -> torch.Tensor:
    """The table with zeros up to a whole number of the largest units."""
    missing = -bias.shape[1] % max(UNIT_TOKENS)
    return torch.cat((bias, bias.new_zeros(bias.shape[0], missing)), dim=1)
