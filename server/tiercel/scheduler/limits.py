"""What a step and a request may use, and the requests that could never run within it."""

from dataclasses import dataclass

from tiercel.cache.pool import BlockPool
from tiercel.wire.request import GenerationRequest


class NeverFits(Exception):
    """A request that could not run even if it were alone. The text names both numbers."""


@dataclass(frozen=True)
class SchedulerLimits:
    """The scheduler's slice of the settings."""

    max_rows: int  # rows of the worker: the most sequences that run at once
    max_total_tokens: int  # per request: prompt and new tokens
    max_batch_prefill_tokens: int  # per step: tokens of slices longer than one
    step_stretch: float  # a step with decoding rows may take about this many decode steps; 0: any
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        if min(self.max_rows, self.max_total_tokens, self.max_batch_prefill_tokens) < 1:
            raise ValueError(f"every limit must be at least 1: {self}")


def refuse_what_never_fits(
    request: GenerationRequest, limits: SchedulerLimits, pool: BlockPool
) -> None:
    """Raises NeverFits, or ValueError for an empty prompt or no token asked for."""
    prompt, new = len(request.token_ids), request.max_new_tokens
    if prompt < 1 or new < 1:
        raise ValueError(f"request {request.id} has {prompt} prompt tokens and asks for {new}")
    if prompt + new > limits.max_total_tokens:
        raise NeverFits(
            f"{prompt} prompt tokens and {new} new tokens are more than the "
            f"{limits.max_total_tokens} tokens a request may have"
        )
    needed = pool.blocks_for(prompt + new - 1)  # the last token drawn is never computed
    if needed > pool.num_blocks:
        raise NeverFits(
            f"{prompt} prompt tokens and {new} new tokens need {needed} cache blocks of "
            f"{pool.block_tokens} tokens, but there are only {pool.num_blocks}"
        )
