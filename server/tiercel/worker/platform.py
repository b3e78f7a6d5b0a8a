"""Platform, the seam between the worker and a kind of device, and what runs a step on one.

A platform is a file and a line in `make_platform`; the worker never asks which one it has.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tiercel.attention.cache import KvCache
from tiercel.errors import ConfigError
from tiercel.guidance.rows import RowMasks
from tiercel.model.falcon import Falcon
from tiercel.model.loader import LayerStyle
from tiercel.model.spec import FalconSpec
from tiercel.parallel.shard import Shard
from tiercel.plan.sizes import Storage
from tiercel.quantization.method import LinearMethod
from tiercel.quantization.staging import Staging
from tiercel.sampling.sampler import Sampler
from tiercel.wire.options import EngineOptions
from tiercel.wire.step import PromptLogprobs, RowFailure, RowSlice, RowStart, SampledToken
from tiercel.worker.rows import Rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What the layers of a model are built from on this platform."""

    method: LinearMethod
    style: LayerStyle
    attention: Any  # an AttentionBackend, and what the platform's runner plans it with
    staging: Staging | None = None  # full-sized when the layers are built


@dataclass(frozen=True, slots=True)
class RunnerParts:
    """What a runner works with; it owns none of it."""

    options: EngineOptions
    spec: FalconSpec  # with this rank's numbers
    model: Falcon
    attention: Any
    cache: KvCache
    rows: Rows
    masks: RowMasks
    sampler: Sampler
    max_rows: int
    max_total_tokens: int
    weight_bytes: int  # of this rank as the plan has them: what layers keep besides is not read


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of the slices of a step that asked for a token."""

    results: list[SampledToken | RowFailure]
    seconds: float  # model and sampling, as the device worked
    total_s: float | None = None  # of the whole step; None: as the host saw it


class Flight(Protocol):
    """A step on its way."""

    @property
    def prompts(self) -> list[PromptLogprobs]:
        """Logprobs of prompt tokens, there as soon as the step is submitted."""
        ...

    @property
    def failures(self) -> list[RowFailure]:
        """Rows that failed before anything was drawn."""
        ...

    def land(self) -> Drawn:
        """Wait until the step is done. Called once."""
        ...


class Runner(Protocol):
    """Runs steps, in the order of submission. Its rows are those of the worker, by number."""

    def start(self, start: RowStart) -> None:
        """A sequence takes its row. Raises ValueError for parameters that cannot be applied."""
        ...

    def needs_tokens(self, row: int) -> bool:
        """Whether the row's next draw wants all tokens before it on the host."""
        ...

    def add_blocks(self, row: int, blocks: list[int]) -> None:
        """The row's block table grows; the worker's own has not grown yet."""
        ...

    def copy_blocks(self, copies: list[tuple[int, int, int]]) -> None:
        """See KvCache.copy; before `add_blocks` and `run` of the same step."""
        ...

    def warm_up(self) -> None:
        """Capture or compile what would otherwise delay the first requests."""
        ...

    def run(self, slices: list[RowSlice]) -> Flight:
        """Submit one step. The rows hold their tokens, as far as they are known, and blocks.

        Raises ValueError for a slice beyond its row's tokens or blocks, and whatever torch raises.
        """
        ...


class Platform(Protocol):
    """A kind of device."""

    name: str  # as in --device
    device: torch.device
    depth: int  # steps that may be out at once
    clears_blocks: bool  # whether attention reads behind a row's end, so that blocks start as zeros

    def parts(
        self, shard: Shard, storage: Storage, options: EngineOptions, max_tokens: int
    ) -> ModelParts:
        """What this rank's share of the model is built from. `max_tokens`: of the longest sequence.

        Raises ConfigError for a storage that this platform does not have.
        """
        ...

    def free_bytes(self) -> int:
        """Memory that can still be taken on the device."""
        ...

    def cache_bytes(self, fraction: float, trial: Callable[[], None]) -> int:
        """What the KV cache may take. `trial` runs the largest steps on a cache just big enough."""
        ...

    def growth(self, run: Callable[[], None]) -> int | None:
        """Run it, and say how many bytes it took at most; None where that cannot be known."""
        ...

    def runner(self, parts: RunnerParts) -> Runner:
        """What runs the steps of a model."""
        ...


def make_platform(options: EngineOptions, *, place: int = 0, neighbours: int = 1) -> Platform:
    """The platform that --device names; auto takes a GPU where there is one.

    `place` of `neighbours` ranks on this machine: each has its own GPU, or shares the CPU.

    Logs which and why in one line; on a GPU, `choose_ops` does the same for the kernels. Raises
    ConfigError for a device that is not there or too old.
    """
    wanted, reason = options.device, "--device says so"
    if wanted == "auto":
        found = torch.cuda.is_available()
        wanted, reason = ("cuda", "there is a GPU") if found else ("cpu", "torch sees no GPU")
    logger.info("the model runs on %s, because %s", wanted, reason)
    if wanted == "cpu":
        from tiercel.worker.cpu import CpuPlatform

        return CpuPlatform(options.threads, neighbours=neighbours)
    if wanted == "cuda":
        from tiercel.worker.cuda.platform import CudaPlatform

        return CudaPlatform.open(options, place)
    raise ConfigError(f"--device {wanted} is not one of auto, cpu, cuda")
