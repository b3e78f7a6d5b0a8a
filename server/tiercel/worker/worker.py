"""Worker: one model on one device, its cache and its rows; runs the steps a scheduler plans."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tiercel.attention.cache import KvCache
from tiercel.attention.cpu import CpuAttention
from tiercel.errors import ConfigError, OutOfMemory
from tiercel.guidance.cache import GrammarCache
from tiercel.guidance.rows import RowMasks
from tiercel.layers.alibi import bias_table
from tiercel.model.checkpoint import Checkpoint
from tiercel.model.config import load_spec
from tiercel.model.falcon import Falcon
from tiercel.model.loader import FalconLoader
from tiercel.model.spec import FalconSpec, Position
from tiercel.parallel.context import ParallelContext
from tiercel.quantization.method import linear_method
from tiercel.sampling.sampler import Sampler
from tiercel.wire.options import EngineOptions
from tiercel.wire.step import (
    PromptLogprobs,
    RowFailure,
    RowSlice,
    RowStart,
    SampledToken,
    StepOutput,
    StepPlan,
)
from tiercel.worker.inputs import Batch, gather
from tiercel.worker.machine import cores, free_bytes
from tiercel.worker.memory import block_bytes, cache_size
from tiercel.worker.prompt import prompt_logprobs
from tiercel.worker.rows import Rows
from tiercel.worker.threads import StepThreads
from tiercel.worker.warmup import warm_up

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Worker:
    """load, then allocate, then warmup, then any number of steps. Not thread-safe.

    After `load`: spec, dtype, device, max_rows, weights_bytes. After `allocate`: num_blocks and the
    final max_total_tokens.
    """

    def __init__(self, options: EngineOptions) -> None:
        """Raises ConfigError for a device or a block size that cannot be."""
        if options.device not in ("auto", "cpu"):
            raise ConfigError(f"--device {options.device} is not supported yet; use cpu")
        if options.block_tokens < 1 or 128 % options.block_tokens:
            raise ConfigError(f"a block of {options.block_tokens} tokens does not divide 128")
        self._options = options
        self.device = "cpu"
        self.max_rows = options.max_batch_size or options.max_concurrent_requests
        self.num_blocks = self.cache_bytes = 0
        self.grammars = GrammarCache.of_model(options.model_path)

    @torch.inference_mode()
    def load(self, progress: Callable[[int, int], None] | None = None) -> FalconSpec:
        """Read the model. `progress` gets bytes read so far and bytes in all.

        Raises ConfigError, WeightsError or OutOfMemory.
        """
        options = self._options
        threads = options.threads or cores()
        torch.set_num_threads(threads)
        folder = Path(options.model_path)
        spec = load_spec(folder, rope_scaling=options.rope_scaling, rope_factor=options.rope_factor)
        self.spec = spec
        self.dtype = options.dtype or spec.dtype
        self.max_total_tokens = min(
            options.max_total_tokens or spec.max_positions, spec.max_positions
        )
        dtype = _dtype(self.dtype)
        method = linear_method(options.quantize, dtype)
        checkpoint = Checkpoint.open(folder, spec)
        _check_fits(checkpoint, dtype)
        bias = None
        if spec.position is Position.ALIBI:
            bias = bias_table(spec.num_heads, spec.head_dim, self.max_total_tokens)
        self._attention = CpuAttention(
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            block_tokens=options.block_tokens,
            bias=bias,
        )
        loader = FalconLoader(
            checkpoint,
            spec,
            dtype=dtype,
            method=method,
            ranks=ParallelContext(),
            progress=progress,
        )
        self.model: Falcon = loader.load(self._attention, self.max_total_tokens)
        self.weights_bytes = self.model.nbytes
        self._threads = StepThreads(threads, self.weights_bytes, dtype.itemsize)
        return spec

    @torch.inference_mode()
    def allocate(self) -> None:
        """Choose the size of the KV cache and allocate it, with everything that goes by rows.

        Raises OutOfMemory if not even the smallest useful cache fits.
        """
        options, spec, dtype = self._options, self.spec, _dtype(self.dtype)
        bytes_per_block = block_bytes(spec, options.block_tokens, dtype.itemsize)
        size = cache_size(
            bytes_per_block=bytes_per_block,
            block_tokens=options.block_tokens,
            free_bytes=int(free_bytes() * options.memory_fraction),
            max_rows=self.max_rows,
            max_total_tokens=self.max_total_tokens,
            wanted_tokens=options.max_batch_total_tokens,
        )
        self.num_blocks, self.max_total_tokens = size.num_blocks, size.max_total_tokens
        self.cache_bytes = size.num_blocks * bytes_per_block
        slot_size = spec.num_kv_heads * spec.head_dim
        self.cache = KvCache(
            spec.num_layers, size.num_blocks, options.block_tokens, slot_size, dtype
        )
        self._rows = Rows(
            self.max_rows, size.max_total_tokens, options.block_tokens, self.cache.zero_block
        )
        self.masks = RowMasks(
            self.grammars, self.max_rows, spec.vocab_size, threads=torch.get_num_threads()
        )
        self.sampler = Sampler(
            spec.vocab_size,
            self.max_rows,
            watermark_gamma=options.watermark_gamma,
            watermark_delta=options.watermark_delta,
            masks=self.masks,
        )

    def warmup(self) -> None:
        """Run a chunk of prefill and decoding batches as real steps, then forget them."""
        used = warm_up(
            self.step,
            self.max_rows,
            self.num_blocks,
            self._options.block_tokens,
            self.max_total_tokens,
        )
        with torch.inference_mode():
            self.cache.clear(used)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> StepOutput:
        """Run one plan. What goes wrong with one row is a RowFailure and the row's own matter.

        Raises whatever torch raises for the step as a whole, and ValueError for a plan that
        contradicts itself; the rows are undefined then.
        """
        began = time.perf_counter()
        failures = [failure for each in plan.starts if (failure := self._start(each))]
        slices = plan.slices
        if failures:
            failed = {failure.row for failure in failures}
            slices = [each for each in slices if each.row not in failed]
        self._copy_parts(slices)
        for each in slices:
            if each.new_blocks:
                self._add_blocks(each)
        if not slices:
            return StepOutput(plan.step, [], [], failures, 0.0, time.perf_counter() - began)
        self._threads.use(sum(each.count for each in slices))
        batch = gather(slices, self._rows, self._options.block_tokens, self._attention)
        # Here the forward has all cores, and a mask thread beside it delays every parallel region:
        # 16 grammars over 65,024 tokens added 23% to a greedy step of 146M, this way 15%.
        self.masks.settle([each.row for each in slices if each.sample])
        forward_began = time.perf_counter()
        hidden = self.model.forward(batch.inputs, self.cache)
        prompts = self._prompts(batch, hidden, failures)
        sampled = self._sample(batch, hidden, failures)
        ended = time.perf_counter()
        return StepOutput(
            plan.step, sampled, prompts, failures, ended - forward_began, ended - began
        )

    def _start(self, start: RowStart) -> RowFailure | None:
        """A sequence takes its row; None unless that fails."""
        ids, vocab = start.token_ids, self.spec.vocab_size
        if min(ids) < 0 or max(ids) >= vocab:  # the embedding would fail the step, not the row
            return RowFailure(start.row, f"token ids must be from 0 to {vocab - 1}")
        owed = start.prompt_tokens if start.prompt_logprobs else 0
        self._rows.start(start.row, ids, owed, start.prompt_top_n)
        self.masks.start(start.row, start.grammar, ids[start.prompt_tokens :])
        try:
            self.sampler.start(start.row, start.sampling, start.prompt_tokens)
        except Exception as error:  # noqa: BLE001 - the per-request fault boundary
            return RowFailure(start.row, f"sampling parameters: {type(error).__name__}: {error}")
        return None

    def _copy_parts(self, slices: list[RowSlice]) -> None:
        """Fill beginnings of new blocks; before all else, as a source may be a new block too."""
        size = self._options.block_tokens
        copies = []
        for each in slices:
            if each.copy_from >= 0:
                index, tokens = divmod(each.start, size)
                target = each.new_blocks[index - int(self._rows.held[each.row])]
                copies.append((each.copy_from, target, tokens))
        if copies:
            self.cache.copy(copies)

    def _add_blocks(self, each: RowSlice) -> None:
        """Extend the row's block table; clear the blocks that will be read before they are full.

        Blocks below `start` come filled from the prefix cache, and so does the beginning of the
        one that holds it; those that the slice fills need no clearing.
        """
        size = self._options.block_tokens
        held = int(self._rows.held[each.row])
        first = max(-(-each.start // size), (each.start + each.count) // size, held)
        stale = each.new_blocks[first - held :]
        if stale:
            self.cache.clear(stale)
        self._rows.add_blocks(each.row, each.new_blocks)

    def _prompts(
        self, batch: Batch, hidden: torch.Tensor, failures: list[RowFailure]
    ) -> list[PromptLogprobs]:
        """Logprobs of prompt tokens, for the slices whose rows want them."""
        results: list[PromptLogprobs] = []
        for each, first in zip(batch.slices, batch.firsts.tolist(), strict=True):
            until = self._rows.logprobs_until[each.row]
            count = min(each.start + each.count, until - 1) - each.start
            if count <= 0:
                continue
            targets = self._rows.tokens[each.row, each.start + 1 : each.start + 1 + count]
            result = prompt_logprobs(
                self.model,
                hidden[first : first + count],
                targets,
                each.row,
                each.start + 1,
                top_n=self._rows.prompt_top_n[each.row],
            )
            if isinstance(result, PromptLogprobs):
                results.append(result)
            else:
                failures.append(result)
        return results

    def _sample(
        self, batch: Batch, hidden: torch.Tensor, failures: list[RowFailure]
    ) -> list[SampledToken]:
        """Draw a token for every slice that asks for one, and append it to its row."""
        failed = {failure.row for failure in failures}
        chosen = [
            i for i, each in enumerate(batch.slices) if each.sample and each.row not in failed
        ]
        if not chosen:
            return []
        index = torch.from_numpy(batch.lasts[chosen])
        logits = self.model.logits(hidden.index_select(0, index))
        rows = [batch.slices[i].row for i in chosen]
        tokens: list[npt.NDArray[np.integer]] = [self._rows.all_tokens(row) for row in rows]
        drawn = self.sampler.sample(logits, rows, tokens, [len(each) for each in tokens])
        sampled = [each for each in drawn if isinstance(each, SampledToken)]
        failures.extend(each for each in drawn if isinstance(each, RowFailure))
        if sampled:
            drawn_rows = [each.row for each in sampled]
            drawn_ids = [each.token_id for each in sampled]
            self._rows.append(drawn_rows, drawn_ids)
            self.masks.advance(drawn_rows, drawn_ids)
        return sampled


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"--dtype {name} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_fits(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Refuse at once what would be killed half an hour later."""
    numbers = sum(torch.Size(checkpoint.shape(name)).numel() for name in checkpoint.names)
    needed, free = numbers * dtype.itemsize, free_bytes()
    if needed > free:
        raise OutOfMemory(
            f"the weights need {needed / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, but "
            f"only {free / 1e9:.1f} GB of memory is free"
        )
