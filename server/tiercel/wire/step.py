"""What the scheduler asks of a worker in one step, and what the worker answers.

A row is a worker's persistent memory of one running sequence: its tokens, its block table, its
sampling parameters. A plan names rows and token counts; it never carries what a row already holds.
Plans run in the order of their steps, also where several are out: each finds the rows and the cache
as the one before it leaves them.
"""

import msgspec

from tiercel.wire.request import Grammar, SamplingParams


class RowStart(msgspec.Struct, frozen=True, array_like=True):
    """A sequence takes a row: newly admitted, or resumed after preemption."""

    row: int
    token_ids: list[int]  # all tokens known so far: the prompt and, when resumed, its outputs
    prompt_tokens: int  # how many of token_ids are the prompt
    sampling: SamplingParams
    prompt_logprobs: bool = False
    prompt_top_n: int = 0
    grammar: Grammar | None = None  # its state is that after token_ids[prompt_tokens:]


class RowSlice(msgspec.Struct, frozen=True, array_like=True):
    """The part of one row that is computed in this step: tokens [start, start + count)."""

    row: int
    start: int  # tokens of this row whose keys and values are in the cache when the step runs
    # At least 1. Where the step before is still out, the only token may be the one it draws: its
    # id is in the row by the time this step runs.
    count: int
    new_blocks: list[int]  # appended to the row's block table before the step runs
    sample: bool  # true when the slice ends at the row's last token: the next one is drawn
    # The first start % block_tokens tokens of this block are copied into the row's new block that
    # holds `start`, before any slice of the step writes anything; -1: nothing is copied.
    copy_from: int = -1


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    """Everything that runs in one step. `starts` come first, then all slices run together."""

    step: int
    starts: list[RowStart]
    slices: list[RowSlice]


class SampledToken(msgspec.Struct, frozen=True, array_like=True):
    """The token drawn for one row. Logprobs are natural logarithms after all processors."""

    row: int
    token_id: int
    logprob: float
    top_ids: list[int] = []  # best first; ties at the cut are all there, filtered ones are not
    top_logprobs: list[float] = []


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Raw log-softmax of prompt tokens [first, first + len(logprobs)) of one row."""

    row: int
    first: int  # position of the first token here; position 0 has no logprob and never appears
    logprobs: list[float]
    top_ids: list[list[int]] = []  # per position, where prompt_top_n is set; best first
    top_logprobs: list[list[float]] = []


class RowFailure(msgspec.Struct, frozen=True, array_like=True):
    """One row could not be computed or sampled. The others of the step are not touched by it."""

    row: int
    message: str


class StepOutput(msgspec.Struct, frozen=True, array_like=True):
    """The results of one plan: one entry per slice that asked to sample, unless it failed.

    A row that failed or ended may be in plans that were made before this was known: until it is
    started again, its results are dropped, whatever they are.
    """

    step: int
    sampled: list[SampledToken]
    prompt_logprobs: list[PromptLogprobs]
    failures: list[RowFailure]
    forward_s: float  # model and sampling
    # The whole step as the worker saw it. Where several are out: from the end of the step before it
    # or its own beginning, whichever is later, to its end; time spent waiting in line is not its.
    total_s: float
