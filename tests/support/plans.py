"""Drives a Worker with hand-made plans: what the scheduler does, reduced to what a test asks for.

Blocks are handed out in a shuffled order, so that a test never passes because they are in a row.
"""

import random
from dataclasses import dataclass, field

from tiercel.wire.request import SamplingParams
from tiercel.wire.step import (
    PromptLogprobs,
    RowFailure,
    RowSlice,
    RowStart,
    SampledToken,
    StepOutput,
    StepPlan,
)
from tiercel.worker.worker import Worker

GREEDY = SamplingParams()


@dataclass
class Sequence:
    """One row as the driver sees it."""

    row: int
    tokens: list[int]
    prompt_tokens: int
    sampling: SamplingParams = GREEDY
    prompt_logprobs: bool = False
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    copy_from: int = -1
    sampled: list[SampledToken] = field(default_factory=list)
    logprobs: list[PromptLogprobs] = field(default_factory=list)
    failure: RowFailure | None = None
    started: bool = False

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]


class PlanDriver:
    """Owns the block ids of one worker."""

    def __init__(self, worker: Worker, block_tokens: int = 16, seed: int = 0) -> None:
        self.worker = worker
        self.block_tokens = block_tokens
        self.free = list(range(worker.num_blocks))
        random.Random(seed).shuffle(self.free)
        self.step_number = 0

    def sequence(
        self,
        row: int,
        prompt: list[int],
        *,
        sampling: SamplingParams = GREEDY,
        prompt_logprobs: bool = False,
        prefix: "Sequence | None" = None,
        copy: bool = False,
    ) -> Sequence:
        """A new sequence; with `prefix` it shares the full blocks of equal tokens of that one.

        With `copy` it copies the equal tokens behind them too.
        """
        made = Sequence(row, list(prompt), len(prompt), sampling, prompt_logprobs)
        if prefix is not None:
            size = self.block_tokens
            limit = min(prefix.computed, len(prompt) - 1) // size
            while made.computed // size < limit:
                part = slice(made.computed, made.computed + size)
                if prompt[part] != prefix.tokens[part]:
                    break
                made.computed += size
            made.blocks = prefix.blocks[: made.computed // size]
            if copy:
                _copy(made, prefix)
        return made

    def step(self, work: list[tuple[Sequence, int]]) -> StepOutput:
        """One plan: each sequence with the number of tokens to compute now."""
        starts, slices = [], []
        for each, count in work:
            new = [] if each.started else list(each.blocks)
            if not each.started:
                starts.append(
                    RowStart(
                        each.row,
                        list(each.tokens),
                        each.prompt_tokens,
                        each.sampling,
                        each.prompt_logprobs,
                    )
                )
                each.started = True
            needed = -(-(each.computed + count) // self.block_tokens)
            while len(each.blocks) < needed:
                each.blocks.append(self.free.pop())
                new.append(each.blocks[-1])
            sample = each.computed + count == len(each.tokens)
            slices.append(RowSlice(each.row, each.computed, count, new, sample, each.copy_from))
            each.copy_from = -1
            each.computed += count
        self.step_number += 1
        output = self.worker.step(StepPlan(self.step_number, starts, slices))
        self._apply({each.row: each for each, _ in work}, output)
        return output

    def _apply(self, by_row: dict[int, Sequence], output: StepOutput) -> None:
        for token in output.sampled:
            by_row[token.row].tokens.append(token.token_id)
            by_row[token.row].sampled.append(token)
        for logprobs in output.prompt_logprobs:
            by_row[logprobs.row].logprobs.append(logprobs)
        for failure in output.failures:
            by_row[failure.row].failure = failure

    def run(self, sequences: list[Sequence], new_tokens: int, *, chunk: int = 1 << 30) -> None:
        """Until each has `new_tokens` generated: all together, prompts in chunks."""
        while True:
            work = [
                (each, min(chunk, len(each.tokens) - each.computed))
                for each in sequences
                if each.failure is None and len(each.generated) < new_tokens
            ]
            if not work:
                return
            self.step(work)

    def release(self, sequence: Sequence) -> None:
        self.free.extend(sequence.blocks)
        sequence.blocks = []


def _copy(made: Sequence, source: Sequence) -> None:
    """Of the block behind the shared ones, the tokens that are equal."""
    index = len(made.blocks)
    limit = min(source.computed, len(made.tokens) - 1)
    while made.computed < limit and made.tokens[made.computed] == source.tokens[made.computed]:
        made.computed += 1
        made.copy_from = source.blocks[index]
