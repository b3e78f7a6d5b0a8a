"""Worker: one model on one device, its cache and its rows; runs the steps a scheduler plans."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tiercel.attention.cache import KvCache
from tiercel.errors import ConfigError, OutOfMemory
from tiercel.guidance.cache import GrammarCache
from tiercel.guidance.rows import RowMasks
from tiercel.model.checkpoint import Checkpoint
from tiercel.model.config import load_spec
from tiercel.model.falcon import Falcon
from tiercel.model.loader import FalconLoader
from tiercel.model.spec import FalconSpec
from tiercel.model.weights import Weights
from tiercel.parallel.context import OneRank, ParallelContext
from tiercel.parallel.shard import Shard
from tiercel.plan.memory import staging_bytes
from tiercel.plan.offload import offloaded_bytes
from tiercel.plan.sizes import Storage, chosen_storage, weight_bytes
from tiercel.sampling.sampler import Sampler
from tiercel.wire.messages import RankMemory
from tiercel.wire.options import DEFAULT_PREFILL_TOKENS, EngineOptions
from tiercel.wire.step import (
    RowFailure,
    RowSlice,
    RowStart,
    SampledToken,
    StepOutput,
    StepPlan,
)
from tiercel.worker.allocations import returned_at_once
from tiercel.worker.footprint import Found, device_bytes, device_name, outside_torch
from tiercel.worker.memory import CacheSize, block_bytes, cache_size, out_of_memory
from tiercel.worker.platform import Flight, Platform, Runner, RunnerParts, make_platform
from tiercel.worker.rows import Rows
from tiercel.worker.warmup import PREFILL_TOKENS, trial_plans, warm_up

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True)
class _Out:
    """A plan that was submitted; `output` once its step has landed."""

    plan: StepPlan
    failures: list[RowFailure]
    flight: Flight | None  # None: no slice was left to compute
    began_s: float
    output: StepOutput | None = None


class Worker:
    """load, then allocate, then warmup, then any number of steps. Not thread-safe.

    A step is submitted and later collected, in the same order; up to `depth` may be out. After
    `load`: spec, dtype, device, max_rows, weights_bytes. After `allocate`: num_blocks and the final
    max_total_tokens.
    """

    def __init__(
        self,
        options: EngineOptions,
        platform: Platform | None = None,
        *,
        open_weights: Callable[[Path, FalconSpec], Weights] = Checkpoint.open,
        ranks: ParallelContext | None = None,
    ) -> None:
        """`platform`: the one that options.device names, unless it is given.

        `ranks`: those that share the model, each with a worker of its own that is asked the same.

        Raises ConfigError for a device or a block size that cannot be.
        """
        if options.block_tokens < 1 or 128 % options.block_tokens:
            raise ConfigError(f"a block of {options.block_tokens} tokens does not divide 128")
        self._options = options
        self._open_weights = open_weights
        self._ranks: ParallelContext = OneRank() if ranks is None else ranks
        self._platform = make_platform(options) if platform is None else platform
        self.device = self._platform.name
        self.device_name = device_name(self._platform.device)
        self.depth = self._platform.depth
        self.max_rows = options.max_batch_size or options.max_concurrent_requests
        self.num_blocks = self.cache_bytes = 0
        self.found = Found(self.device)
        self.rank_memory: list[RankMemory] = []  # after `allocate`, of all ranks
        self.storage = Storage(None, False, "float32")  # after `load`, what is in force
        self.grammars = GrammarCache.of_model(options.model_path)
        self._out: deque[_Out] = deque()

    @property
    def quantization(self) -> str | None:
        """How the linear layers are stored, in the words of --quantize; None: plain numbers."""
        stored = self.storage
        return f"{stored.quantize}+double-quant" if stored.double_quant else stored.quantize

    @property
    def ranks(self) -> int:
        """How many share the model, this one included."""
        return self._ranks.size

    @torch.inference_mode()
    def load(self, progress: Callable[[int, int], None] | None = None) -> FalconSpec:
        """Read the model. `progress` gets bytes read so far and bytes in all.

        Raises ConfigError, WeightsError or OutOfMemory.
        """
        options = self._options
        folder = Path(options.model_path)
        spec = load_spec(folder, rope_scaling=options.rope_scaling, rope_factor=options.rope_factor)
        self.spec = spec
        self.dtype = options.dtype or spec.dtype
        self.max_total_tokens = min(
            options.max_total_tokens or spec.max_positions, spec.max_positions
        )
        dtype = _dtype(self.dtype)
        self.storage = chosen_storage(spec, options.quantize, options.double_quant, self.dtype)
        ranks = self._ranks
        ranks.prepare(dtype)
        self._shard = Shard(spec, ranks.rank, ranks.size, self.storage.unit)
        parts = self._platform.parts(self._shard, self.storage, options, self.max_total_tokens)
        weights = self._open_weights(folder, spec)
        at_host = offloaded_bytes(self._shard, self.storage, options.cpu_offload_gb)
        free = self._platform.free_bytes()
        self.found.memory = device_bytes(self._platform.device) or free
        staged = parts.staging is not None and bool(self.storage.quantize or at_host)
        _check_fits(self._shard, self.storage, free + at_host, staged=staged)
        loader = FalconLoader(
            weights,
            self._shard,
            dtype=dtype,
            method=parts.method,
            ranks=ranks,
            device=self._platform.device,
            progress=self._shown(progress),
        )
        self._attention = parts.attention
        with returned_at_once():
            self.model: Falcon = loader.load(parts.attention, parts.style)
        self.weights_bytes = self.model.nbytes + parts.attention.nbytes
        self.found.weights, self.found.copied_head = self.model.nbytes, self.model.copied_head
        self.found.staging = parts.staging.nbytes if parts.staging else 0
        return spec

    def _shown(self, progress: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
        """The other ranks see it too, as a sign of life."""

        def read(done_bytes: int, total_bytes: int) -> None:
            self._ranks.at_work()
            if progress is not None:
                progress(done_bytes, total_bytes)

        return read

    @torch.inference_mode()
    def allocate(self) -> None:
        """Choose the size of the KV cache and allocate it, with everything that goes by rows.

        Raises OutOfMemory if not even the smallest useful cache fits.
        """
        options, item_bytes = self._options, _dtype(self.dtype).itemsize
        self._ranks.smallest(0)  # all have loaded: what is free now is free for the cache
        bytes_per_block = block_bytes(self._shard.spec, options.block_tokens, item_bytes)
        found = self.found
        found.left = self._platform.cache_bytes(options.memory_fraction, self._trial)
        size = cache_size(
            bytes_per_block=bytes_per_block,
            block_tokens=options.block_tokens,
            cache_bytes=found.left,
            max_rows=self.max_rows,
            max_total_tokens=self.max_total_tokens,
            wanted_tokens=options.max_batch_total_tokens,
        )
        blocks = self._ranks.smallest(size.num_blocks)
        size = CacheSize(blocks, min(size.max_total_tokens, blocks * options.block_tokens))
        self._set_up(size)
        self.cache_bytes = size.num_blocks * bytes_per_block
        found.cache, found.cache_tokens = self.cache.nbytes, size.num_blocks * options.block_tokens
        held = self._ranks.everyones((self.weights_bytes, self.cache_bytes))
        self.rank_memory = [RankMemory(*each) for each in held]

    def warmup(self) -> None:
        """Run a chunk of prefill and decoding batches as real steps, then forget them.

        `found` is complete then.
        """
        found = self.found
        found.context = outside_torch(self._platform.device)
        found.warm_up = self._platform.growth(self._warm_up)
        found.warm_up_tokens = min(PREFILL_TOKENS, self.max_total_tokens - 1)
        found.free = self._platform.free_bytes()

    def _warm_up(self) -> None:
        used = warm_up(
            self.step,
            self.max_rows,
            self.num_blocks,
            self._options.block_tokens,
            self.max_total_tokens,
            self._ranks.smallest,
        )
        free = self._platform.free_bytes()
        with torch.inference_mode():
            self.runner.warm_up()
            self.cache.clear(used)
        self.found.graphs = max(0, free - self._platform.free_bytes())

    def step(self, plan: StepPlan) -> StepOutput:
        """Submit and collect at once."""
        self.submit(plan)
        return self.collect()

    @torch.inference_mode()
    def submit(self, plan: StepPlan) -> None:
        """Start one plan. What goes wrong with one row is a RowFailure and the row's own matter.

        A slice may begin at a token that the step before has yet to draw. Raises StepOutOfMemory,
        or whatever else torch raises for the step as a whole, and ValueError for a plan that
        contradicts itself; the rows are undefined then, and there is nothing to collect.
        """
        with out_of_memory():
            self._submit(plan)

    def _submit(self, plan: StepPlan) -> None:
        began = time.perf_counter()
        failures = [failure for each in plan.starts if (failure := self._start(each))]
        slices = plan.slices
        if failures:
            failed = {failure.row for failure in failures}
            slices = [each for each in slices if each.row not in failed]
        if self._out and any(each.sample and self.runner.needs_tokens(each.row) for each in slices):
            for out in self._out:
                self._land(out)
        self._copy_parts(slices)
        for each in slices:
            if each.new_blocks:
                self._add_blocks(each)
        flight = self.runner.run(slices) if slices else None
        self._out.append(_Out(plan, failures, flight, began))

    @torch.inference_mode()
    def collect(self) -> StepOutput:
        """The result of the oldest plan that is out; waits for it. Raises like `submit`."""
        out = self._out.popleft()
        with out_of_memory():
            return self._land(out)

    def idle(self) -> None:
        """See Executor: a device that has nothing to do needs no word."""

    def close(self) -> None:
        """See Executor: everything goes with the process."""

    def _land(self, out: _Out) -> StepOutput:
        """Take in what was drawn, once: rows and grammars go on by a token."""
        if out.output is not None:
            return out.output
        sampled: list[SampledToken] = []
        prompts, failures, seconds, total = [], list(out.failures), 0.0, None
        if out.flight is not None:
            drawn = out.flight.land()
            seconds, total, prompts = drawn.seconds, drawn.total_s, out.flight.prompts
            failures += out.flight.failures
            sampled = [each for each in drawn.results if isinstance(each, SampledToken)]
            failures += [each for each in drawn.results if isinstance(each, RowFailure)]
        if sampled:
            rows, ids = [each.row for each in sampled], [each.token_id for each in sampled]
            self._rows.append(rows, ids)
            self.masks.advance(rows, ids)
        if total is None:
            total = time.perf_counter() - out.began_s
        out.output = StepOutput(out.plan.step, sampled, prompts, failures, seconds, total)
        return out.output

    def _start(self, start: RowStart) -> RowFailure | None:
        """A sequence takes its row; None unless that fails."""
        ids, vocab = start.token_ids, self.spec.vocab_size
        if min(ids) < 0 or max(ids) >= vocab:  # the embedding would fail the step, not the row
            return RowFailure(start.row, f"token ids must be from 0 to {vocab - 1}")
        owed = start.prompt_tokens if start.prompt_logprobs else 0
        self._rows.start(start.row, ids, owed, start.prompt_top_n)
        self.masks.start(start.row, start.grammar, ids[start.prompt_tokens :])
        try:
            self.runner.start(start)
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
            self.runner.copy_blocks(copies)

    def _add_blocks(self, each: RowSlice) -> None:
        """Extend the row's block table; clear the blocks that will be read before they are full.

        Blocks below `start` come filled from the prefix cache, and so does the beginning of the
        one that holds it; those that the slice fills need no clearing.
        """
        size = self._options.block_tokens
        held = int(self._rows.held[each.row])
        first = max(-(-each.start // size), (each.start + each.count) // size, held)
        stale = each.new_blocks[first - held :]
        if stale and self._platform.clears_blocks:
            self.cache.clear(stale)
        self.runner.add_blocks(each.row, each.new_blocks)
        self._rows.add_blocks(each.row, each.new_blocks)

    def _trial(self) -> None:
        """The largest steps there can be, on a cache just big enough for them."""
        options = self._options
        prefill, decode = trial_plans(
            options.max_batch_prefill_tokens or DEFAULT_PREFILL_TOKENS,
            self.max_rows,
            options.block_tokens,
            self.max_total_tokens,
        )
        blocks = 1 + max(each.slices[-1].new_blocks[-1] for each in (prefill, decode))
        self._set_up(CacheSize(blocks, self.max_total_tokens))

        def steps() -> None:
            for plan in (prefill, decode):
                self.step(plan)

        # Once around both: what the platform reads as the peak behind it begins there, too.
        self.found.steps = self._platform.growth(steps)
        del self.cache, self.runner  # they give their memory back before the real ones take it

    def _set_up(self, size: CacheSize) -> None:
        options, spec = self._options, self._shard.spec
        self.num_blocks, self.max_total_tokens = size.num_blocks, size.max_total_tokens
        self.cache = KvCache(
            spec.num_layers,
            size.num_blocks,
            options.block_tokens,
            spec.num_kv_heads * spec.head_dim,
            _dtype(self.dtype),
            self._platform.device,
        )
        self._rows = Rows(
            self.max_rows, size.max_total_tokens, options.block_tokens, self.cache.zero_block
        )
        self.masks = RowMasks(
            self.grammars, self.max_rows, spec.vocab_size, threads=torch.get_num_threads()
        )
        sampler = Sampler(
            spec.vocab_size,
            self.max_rows,
            watermark_gamma=options.watermark_gamma,
            watermark_delta=options.watermark_delta,
            masks=self.masks,
        )
        self.runner: Runner = self._platform.runner(
            RunnerParts(
                options=options,
                spec=spec,
                model=self.model,
                attention=self._attention,
                cache=self.cache,
                rows=self._rows,
                masks=self.masks,
                sampler=sampler,
                max_rows=self.max_rows,
                max_total_tokens=size.max_total_tokens,
                weight_bytes=weight_bytes(self.spec, self.storage, self._ranks.size),
            )
        )


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"--dtype {name} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_fits(shard: Shard, storage: Storage, free: int, *, staged: bool) -> None:
    """Refuse at once what would be killed half an hour later."""
    needed = weight_bytes(shard.whole, storage, shard.ranks)
    needed += staging_bytes(shard.whole, storage, shard.ranks) if staged else 0
    if needed > free:
        whose = "the weights need" if shard.ranks == 1 else f"rank {shard.rank}'s weights need"
        raise OutOfMemory(
            f"{whose} {needed / 1e9:.1f} GB in {storage.label}, but "
            f"only {free / 1e9:.1f} GB of memory is free"
        )
