"""The engine's own loop over a random model: milliseconds per decode step, and of a prompt.

The loop is the real one, with its scheduler; only weights and prompts are random.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tiercel.bench.gpu.idle import Interval
from tiercel.bench.gpu.models import RandomCheckpoint, write_config
from tiercel.engine.assemble import limits_of, make_core
from tiercel.wire.messages import Abort, EngineStep, Shutdown, Submit, ToEngine
from tiercel.wire.options import EngineOptions
from tiercel.wire.request import GenerationRequest, SamplingParams
from tiercel.worker.worker import DTYPES, Worker
from tiercel_kernels.benchmark.bounds import FalconShape
from tiercel_kernels.benchmark.timing import Timing

MAX_ROWS = 256
PROMPT_TOKENS = 1024
PREFILL_TOKENS = 2048
MAX_TOTAL_TOKENS = 2304
_STEADY_STEPS = 40  # timed, behind those that let things settle
_SETTLING_STEPS = 8


@dataclass(frozen=True)
class Decoding:
    """What steps of a full batch took, and the keys per row in the middle of them."""

    timing: Timing
    context: float
    intervals: list[Interval] = field(default_factory=list)  # of the device, where it was watched
    watched_steps: int = 0


class Recorder:
    """Sees every message of the core: when steps ended, and when enough of them were steady."""

    def __init__(self, batch: int, steps: int, start: Callable[[], None] | None = None) -> None:
        """`start` is called once, when things have settled."""
        self._batch = batch
        self._wanted = steps
        self._start = start
        self._steady = 0
        self._generated = 0
        self._last_s: float | None = None
        self.samples_us: list[float] = []
        self.contexts: list[float] = []

    @property
    def complete(self) -> bool:
        """Whether all steps that are wanted were seen."""
        return len(self.samples_us) >= self._wanted

    def __call__(self, step: EngineStep) -> None:
        now = time.perf_counter()
        self._generated += sum(len(delta.tokens) for delta in step.deltas)
        timing = step.timing
        full = timing is not None and timing.decode_rows == self._batch
        if timing is None or not full or timing.prefill_tokens:
            self._last_s, self._steady = None, 0
            return
        if self._last_s is not None and self._steady > _SETTLING_STEPS and not self.complete:
            self.samples_us.append((now - self._last_s) * 1e6)
            self.contexts.append(self._generated / self._batch)
        self._steady += 1
        if self._steady == _SETTLING_STEPS and self._start is not None:
            self._start()
        self._last_s = time.perf_counter()


class Until:
    """An inbox: the requests at once, their end when `over` says so, then Shutdown when idle."""

    def __init__(
        self, requests: list[GenerationRequest], over: Callable[[], bool], ended: Callable[[], None]
    ) -> None:
        """`ended` is called once, before the requests are aborted."""
        self._requests = requests
        self._over = over
        self._ended = ended
        self._submitted = self._aborted = False
        self.submitted_s = 0.0

    def receive(self, wait_s: float) -> list[ToEngine]:
        """See engine.core.Inbox."""
        if not self._submitted:
            self._submitted = True
            self.submitted_s = time.perf_counter()
            return [Submit(self._requests)]
        if self._over() and not self._aborted:
            self._aborted = True
            self._ended()
            return [Abort([each.id for each in self._requests])]
        return [Shutdown()] if wait_s > 0 else []


class BenchEngine:
    """A worker that is loaded and warm; every measurement has a scheduler of its own."""

    def __init__(
        self,
        folder: Path,
        shape: FalconShape,
        device: torch.device,
        *,
        dtype: str = "bfloat16",
        max_rows: int = MAX_ROWS,
        max_total_tokens: int = MAX_TOTAL_TOKENS,
        **switches: Any,
    ) -> None:
        """`folder` takes the model's config.json; `switches`: more fields of EngineOptions."""
        per_row = PROMPT_TOKENS + 4 * _STEADY_STEPS + 128
        self._options = EngineOptions(
            model_path=str(write_config(folder, shape, dtype)),
            dtype=dtype,
            device=device.type,
            max_batch_size=max_rows,
            max_total_tokens=max_total_tokens,
            max_batch_prefill_tokens=min(8192, max_total_tokens * max_rows),
            max_batch_total_tokens=max_rows * min(per_row, max_total_tokens) + max_total_tokens,
            prefix_caching=False,
            grammar_support=False,
            step_stretch=0.0,
            **switches,
        )
        self.worker = Worker(
            self._options,
            open_weights=lambda _, spec: RandomCheckpoint(
                spec, device, DTYPES[dtype], quantize=self._options.quantize
            ),
        )
        spec = self.worker.load()
        self.worker.allocate()
        self._limits = limits_of(self._options, self.worker, spec)
        self.worker.warmup()
        self._vocab = spec.vocab_size

    def decode(
        self,
        batch: int,
        *,
        prompt_tokens: int = PROMPT_TOKENS,
        steps: int = _STEADY_STEPS,
        start: Callable[[], None] | None = None,
        stop: Callable[[], list[Interval]] | None = None,
    ) -> Decoding:
        """Steps of `batch` rows behind prompts of so many tokens, computed for real before.

        `start` and `stop` watch the device during the steps, which makes them slower.
        Raises RuntimeError where a request ended before there were enough steps.
        """
        recorder = Recorder(batch, steps, start)
        seen: list[Interval] = []

        def ended() -> None:
            if stop is not None:
                seen.extend(stop())

        room = self._limits.max_total_tokens - prompt_tokens
        requests = self._requests(batch, prompt_tokens, room)
        self._run(Until(requests, lambda: recorder.complete, ended), recorder)
        if not recorder.complete:
            raise RuntimeError(f"{len(recorder.samples_us)} of {steps} steps before the end")
        timing = Timing.of(recorder.samples_us, "engine")
        context = prompt_tokens + statistics.mean(recorder.contexts)
        return Decoding(timing, context, seen, len(recorder.samples_us) + 1)

    def prefill(self, tokens: int = PREFILL_TOKENS, runs: int = 5) -> Timing:
        """From a prompt's arrival to its first token, alone."""
        samples = []
        for _ in range(runs + 1):
            first: list[float] = []

            def note(step: EngineStep, first: list[float] = first) -> None:
                if step.deltas and not first:
                    first.append(time.perf_counter())

            inbox = Until(self._requests(1, tokens, 1), lambda: False, lambda: None)
            self._run(inbox, note)
            samples.append((first[0] - inbox.submitted_s) * 1e6)
        return Timing.of(samples[1:], "engine")

    def _requests(self, count: int, prompt: int, new: int) -> list[GenerationRequest]:
        draw = random.Random(count * 7 + prompt)
        return [
            GenerationRequest(
                number,
                [draw.randrange(self._vocab) for _ in range(prompt)],
                new,
                SamplingParams(),
                [],
            )
            for number in range(count)
        ]

    def _run(self, inbox: Until, emit: Callable[[EngineStep], None]) -> None:
        failed: list[str] = []

        def checked(step: EngineStep) -> None:
            failed.extend(delta.error for delta in step.deltas if delta.error is not None)
            emit(step)

        make_core(self._options, self._limits, self.worker, checked).run(inbox)
        if failed:
            raise RuntimeError(f"a request failed: {failed[0]}")
