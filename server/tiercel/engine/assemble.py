"""Puts an engine together from its options: worker, pool, scheduler, core."""

import time
from collections.abc import Callable

from tiercel.cache.pool import BlockPool
from tiercel.engine.core import EngineCore, Executor
from tiercel.errors import ConfigError
from tiercel.guidance.compiler import GrammarCompiler
from tiercel.model.spec import FalconSpec
from tiercel.plan.memory import Workload
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.messages import EngineReady, EngineStep
from tiercel.wire.options import DEFAULT_PREFILL_TOKENS, EngineOptions
from tiercel.wire.ranks import OnLost
from tiercel.worker.footprint import log_rows, memory_rows
from tiercel.worker.worker import Worker

Silence = Callable[[], list[float]]  # seconds since each of the other ranks was heard


def assemble(
    options: EngineOptions,
    emit: Callable[[EngineStep], None],
    progress: Callable[[int, int], None] | None = None,
    on_lost: OnLost = lambda _: None,
    on_joined: Callable[[Silence], None] = lambda _: None,
) -> tuple[EngineCore, EngineReady]:
    """Load, allocate, warm up. Raises StartupError with a sentence that names the remedy.

    `on_lost` is told why, on a thread, before the process ends because another rank is gone.
    `on_joined` is given, once other ranks are there, whom to ask how long they have been silent.
    """
    if options.num_shard == 1 and options.world is None:
        worker = Worker(options)
        return _assemble(options, worker, worker, emit, progress)
    from tiercel.engine.ranked import RankedExecutor

    executor = RankedExecutor.join(options, on_lost)
    on_joined(executor.silent_s)
    with executor.as_one():
        return _assemble(options, executor.worker, executor, emit, progress)


def _assemble(
    options: EngineOptions,
    worker: Worker,
    executor: Executor,
    emit: Callable[[EngineStep], None],
    progress: Callable[[int, int], None] | None,
) -> tuple[EngineCore, EngineReady]:
    started = time.monotonic()
    grammars = GrammarCompiler(worker.grammars) if options.grammar_support else None
    if grammars is not None:
        grammars.start()
    spec = worker.load(progress)
    loaded = time.monotonic()
    worker.allocate()
    limits = limits_of(options, worker, spec)
    max_input_tokens = _max_input_tokens(options, limits.max_total_tokens)
    worker.warmup()
    _log_memory(options, worker, limits)
    ready = EngineReady(
        model_type="falcon",
        dtype=worker.dtype,
        device=worker.device,
        device_name=worker.device_name,
        vocab_size=spec.vocab_size,
        max_total_tokens=limits.max_total_tokens,
        max_input_tokens=max_input_tokens,
        max_batch_prefill_tokens=limits.max_batch_prefill_tokens,
        max_batch_total_tokens=worker.num_blocks * options.block_tokens,
        max_batch_size=worker.max_rows,
        block_tokens=options.block_tokens,
        total_blocks=worker.num_blocks,
        load_s=loaded - started,
        warmup_s=time.monotonic() - loaded,
        weights_bytes=worker.weights_bytes,
        quantize=worker.quantization,
        cache_bytes=worker.cache_bytes,
        ranks=worker.ranks,
        rank_memory=worker.rank_memory,
    )
    core = make_core(options, limits, worker, emit, grammars, executor=executor)
    return core, ready


def _log_memory(options: EngineOptions, worker: Worker, limits: SchedulerLimits) -> None:
    """The plan's figures for this rank, beside those that were found."""
    load = Workload(limits.max_batch_prefill_tokens, worker.max_rows, worker.max_total_tokens)
    spec, storage, found = worker.spec, worker.storage, worker.found
    log_rows(memory_rows(spec, storage, options, load, found, ranks=worker.ranks))


def make_core(
    options: EngineOptions,
    limits: SchedulerLimits,
    worker: Worker,
    emit: Callable[[EngineStep], None],
    grammars: GrammarCompiler | None = None,
    *,
    executor: Executor | None = None,
) -> EngineCore:
    """A core with an empty pool over a worker that is allocated and warm.

    `executor`: what runs the worker's steps, if not itself.
    """
    pool = BlockPool(worker.num_blocks, options.block_tokens)
    scheduler = Scheduler(limits, pool, lookahead=worker.depth - 1)
    return EngineCore(scheduler, executor or worker, emit, grammars=grammars)


def limits_of(options: EngineOptions, worker: Worker, spec: FalconSpec) -> SchedulerLimits:
    """What was asked for, if the model and the cache allow it. Raises ConfigError."""
    slots = worker.num_blocks * options.block_tokens
    max_total = worker.max_total_tokens
    if options.max_total_tokens is not None and max_total < options.max_total_tokens:
        raise ConfigError(
            f"--max-total-tokens {options.max_total_tokens}: the model's context is "
            f"{spec.max_positions} tokens and the cache holds {slots}; lower it, or raise "
            "--max-batch-total-tokens if that is the smaller one"
        )
    prefill = options.max_batch_prefill_tokens or min(DEFAULT_PREFILL_TOKENS, slots)
    if prefill > slots:
        raise ConfigError(
            f"--max-batch-prefill-tokens {prefill} is more than the cache holds ({slots} tokens); "
            "lower it or raise --max-batch-total-tokens"
        )
    return SchedulerLimits(
        max_rows=worker.max_rows,
        max_total_tokens=max_total,
        max_batch_prefill_tokens=prefill,
        step_stretch=options.step_stretch,
        prefix_caching=options.prefix_caching,
    )


def _max_input_tokens(options: EngineOptions, max_total: int) -> int:
    if options.max_input_tokens is None:
        return max_total - 1
    if options.max_input_tokens >= max_total:
        raise ConfigError(
            f"--max-input-tokens {options.max_input_tokens} must be less than --max-total-tokens "
            f"{max_total}: at least one new token has to fit"
        )
    return options.max_input_tokens
