"""Whole engines without an event loop: requests in, answers out, on any device."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tiercel.engine.assemble import assemble
from tiercel.wire.messages import EngineStats, EngineStep, Shutdown, Submit, ToEngine
from tiercel.wire.options import EngineOptions
from tiercel.wire.request import GenerationRequest

# A CPU always, so that what is tested on a GPU is itself tested everywhere.
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.slow,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@dataclass
class Answer:
    """Everything that came back for one request."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[dict[int, float]] = field(default_factory=list)  # per token: id -> logprob
    prompt_logprobs: list[float | None] | None = None
    finish_reason: str | None = None
    error: str | None = None


@dataclass
class Run:
    answers: list[Answer]  # in the order of the requests
    stats: EngineStats  # when all was over
    least_free: int  # blocks that were free at the end of the fullest step


class Staggered:
    """An inbox: a few requests every few turns, Shutdown when nothing is left."""

    def __init__(self, requests: Sequence[GenerationRequest], at_once: int, every: int) -> None:
        self._left = list(requests)
        self._at_once = at_once
        self._every = every
        self._turn = 0

    def receive(self, wait_s: float) -> list[ToEngine]:
        self._turn += 1
        if self._left:
            if wait_s <= 0 and self._turn % self._every:
                return []
            now, self._left = self._left[: self._at_once], self._left[self._at_once :]
            return [Submit(now)]
        return [Shutdown()] if wait_s > 0 else []


def engine_options(folder: Path, device: str, **given: Any) -> EngineOptions:
    options: dict[str, Any] = {
        "model_path": str(folder),
        "device": device,
        "max_batch_size": 16,
        "max_batch_total_tokens": 16 * 1024,
        "grammar_support": False,
        "step_stretch": 0.0,  # else chunks go by the clock, and no run is as the one before
        "threads": 1,
    }
    return EngineOptions(**(options | given))


def run_engine(
    options: EngineOptions,
    requests: Sequence[GenerationRequest],
    *,
    at_once: int = 1000,
    every: int = 1,
) -> Run:
    """All requests through one engine, which is gone afterwards, with its memory."""
    answers = {request.id: Answer() for request in requests}
    last: list[EngineStats] = []
    free: list[int] = []

    def emit(step: EngineStep) -> None:
        last[:] = [step.stats]
        free.append(step.stats.free_blocks)
        for delta in step.deltas:
            answer = answers[delta.request_id]
            for token in delta.tokens:
                answer.ids.append(token.id)
                answer.logprobs.append(token.logprob)
                answer.tops.append(dict(zip(token.top_ids, token.top_logprobs, strict=True)))
            if delta.prompt_logprobs is not None:
                answer.prompt_logprobs = delta.prompt_logprobs
            answer.finish_reason = delta.finish_reason or answer.finish_reason
            answer.error = delta.error or answer.error

    core, _ = assemble(options, emit)
    core.run(Staggered(requests, at_once, every))
    del core
    release()
    return Run([answers[request.id] for request in requests], last[0], min(free))


def release() -> None:
    """Memory of engines and models that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
