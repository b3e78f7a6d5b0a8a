"""A worker without a model: it remembers what every KV slot holds and checks it before reading.

Tokens are drawn from the whole prefix, so that a wrong slot, a lost block or a preemption that
forgot something changes the output.
"""

from dataclasses import dataclass, field

from tiercel.cache.pool import BlockPool
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.messages import TokenDelta
from tiercel.wire.request import GenerationRequest, SamplingParams
from tiercel.wire.step import (
    PromptLogprobs,
    RowFailure,
    SampledToken,
    StepOutput,
    StepPlan,
)

VOCAB = 50


def request(
    number: int,
    token_ids: list[int],
    max_new_tokens: int = 4,
    *,
    stop: tuple[int, ...] = (),
    prompt_logprobs: bool = False,
    salt: bytes = b"",
) -> GenerationRequest:
    """A greedy request."""
    return GenerationRequest(
        id=number,
        token_ids=token_ids,
        max_new_tokens=max_new_tokens,
        sampling=SamplingParams(),
        stop_token_ids=list(stop),
        prompt_logprobs=prompt_logprobs,
        cache_salt=salt,
    )


def next_token(state: int) -> int:
    """The token drawn after a prefix with this state."""
    return (state // 7) % VOCAB


def extend(state: int, token: int) -> int:
    """The state of a prefix that is one token longer."""
    return hash((state, token))


def alone(asked: GenerationRequest) -> tuple[list[int], str]:
    """Tokens and finish reason of the request on a machine of its own."""
    state = 0
    for token in asked.token_ids:
        state = extend(state, token)
    tokens: list[int] = []
    while True:
        tokens.append(next_token(state))
        state = extend(state, tokens[-1])
        if len(tokens) == asked.max_new_tokens:
            return tokens, "length"
        if tokens[-1] in asked.stop_token_ids:
            return tokens, "eos_token"


@dataclass
class _Row:
    tokens: list[int]
    prompt_tokens: int
    prompt_logprobs: bool
    blocks: list[int] = field(default_factory=list)


class SimulatedWorker:
    """Runs plans. A slot holds (position, state of the prefix that ends there)."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self._size = block_tokens
        self._slots: list[tuple[int, int] | None] = [None] * (num_blocks * block_tokens)
        self._rows: dict[int, _Row] = {}

    def run(
        self, plan: StepPlan, *, fail_rows: frozenset[int] = frozenset(), total_s: float = 0.01
    ) -> StepOutput:
        """Compute the plan; AssertionError where the cache does not hold what it should."""
        for start in plan.starts:
            self._rows[start.row] = _Row(
                list(start.token_ids), start.prompt_tokens, start.prompt_logprobs
            )
        sampled: list[SampledToken] = []
        logprobs: list[PromptLogprobs] = []
        failures: list[RowFailure] = []
        written: set[int] = set()
        self._add_blocks(plan)
        for piece in plan.slices:
            row = self._rows[piece.row]
            end = piece.start + piece.count
            assert end <= len(row.tokens) and end <= len(row.blocks) * self._size
            assert piece.sample == (end == len(row.tokens))
            state = self._compute(row, piece.start, end, written)
            if piece.row in fail_rows:
                failures.append(RowFailure(piece.row, "injected"))
                continue
            if row.prompt_logprobs:
                first, last = piece.start + 1, min(end + 1, row.prompt_tokens)
                values = [float(-position) for position in range(first, last)]
                if values:
                    logprobs.append(PromptLogprobs(piece.row, first, values))
            if piece.sample:
                row.tokens.append(next_token(state))
                sampled.append(SampledToken(piece.row, row.tokens[-1], -1.0))
        return StepOutput(plan.step, sampled, logprobs, failures, total_s, total_s)

    def _add_blocks(self, plan: StepPlan) -> None:
        """New blocks hold nothing of use but what is copied; all sources are read before that."""
        read = {
            piece.row: self._slots[piece.copy_from * self._size :][: piece.start % self._size]
            for piece in plan.slices
            if piece.copy_from >= 0
        }
        for piece in plan.slices:
            row = self._rows[piece.row]
            row.blocks += piece.new_blocks
            if piece.copy_from >= 0:
                target = row.blocks[piece.start // self._size]
                assert target in piece.new_blocks and read[piece.row], "nothing to copy, or into it"
                first = target * self._size
                copied = read[piece.row] + [None] * (self._size - len(read[piece.row]))
                self._slots[first : first + self._size] = copied

    def _compute(self, row: _Row, start: int, end: int, written: set[int]) -> int:
        state = 0
        for position in range(end):
            state = extend(state, row.tokens[position])
            slot = row.blocks[position // self._size] * self._size + position % self._size
            if position >= start:
                assert slot not in written, f"slot {slot} is written twice in one step"
                written.add(slot)
                self._slots[slot] = (position, state)
            else:
                assert self._slots[slot] == (position, state), f"slot {slot} holds something else"
        return state


class Harness:
    """A scheduler, its worker, and everything that came out, checked after every step."""

    def __init__(self, scheduler: Scheduler, worker: SimulatedWorker) -> None:
        self.scheduler = scheduler
        self.worker = worker
        self.tokens: dict[int, list[int]] = {}
        self.deltas: dict[int, list[TokenDelta]] = {}
        self.ended: dict[int, str] = {}  # finish reason, or "error"
        self.first_scheduled: list[int] = []
        self.plans: list[StepPlan] = []

    def plan(self) -> StepPlan | None:
        """Schedule, check the plan against the scheduler's books, do not run it."""
        plan = self.scheduler.schedule()
        if plan is None:
            return None
        self.plans.append(plan)
        running = {sequence.row: sequence for sequence in self.scheduler._running}
        for start in plan.starts:
            if running[start.row].id not in self.first_scheduled:
                self.first_scheduled.append(running[start.row].id)
                line = self.scheduler._sequences.values()
                assert not any(s.resumed and s.row < 0 for s in line), "overtook a preempted one"
        assert len({piece.row for piece in plan.slices}) == len(plan.slices)
        budget = self.scheduler._limits.max_batch_prefill_tokens
        assert sum(piece.count for piece in plan.slices if piece.count > 1) <= budget
        self._check_writable(plan)
        self.scheduler.check_integrity()
        return plan

    def _check_writable(self, plan: StepPlan) -> None:
        size = self.scheduler._pool.block_tokens
        running = {sequence.row: sequence for sequence in self.scheduler._running}
        for piece in plan.slices:
            blocks = running[piece.row].allocation.blocks
            for block in blocks[piece.start // size :]:
                assert self.scheduler._pool._holders[block] == 1, f"block {block} is shared"
                assert self.scheduler._pool._digests[block] is None, f"block {block} is findable"
            for index, block in enumerate(blocks[piece.start // size :]):
                remembered = self.scheduler._pool._partial.count(block)
                allowed = 0 if index else piece.start % size
                assert remembered <= allowed, f"block {block} can be copied while it is written"

    def take(self, deltas: list[TokenDelta]) -> None:
        """Record what a step gave."""
        for delta in deltas:
            assert delta.request_id not in self.ended, "a delta after the end"
            self.deltas.setdefault(delta.request_id, []).append(delta)
            tokens = self.tokens.setdefault(delta.request_id, [])
            tokens += [token.id for token in delta.tokens]
            if delta.finish_reason or delta.error:
                self.ended[delta.request_id] = delta.finish_reason or "error"
        self.scheduler.check_integrity()

    def step(self, total_s: float = 0.01) -> StepPlan | None:
        """One whole step."""
        plan = self.plan()
        if plan is not None:
            self.take(self.scheduler.apply(plan, self.worker.run(plan, total_s=total_s)))
        return plan

    def drain(self, most_steps: int) -> int:
        """Step until idle; the number of steps. AssertionError beyond `most_steps`."""
        for steps in range(most_steps + 1):
            if self.scheduler.idle:
                return steps
            assert self.step() is not None, "work is left and nothing is scheduled"
        raise AssertionError(f"not idle after {most_steps} steps")


def simulated(
    *,
    blocks: int = 64,
    size: int = 4,
    rows: int = 8,
    prefill: int = 64,
    total: int = 512,
    stretch: float = 0.0,
    caching: bool = True,
) -> Harness:
    """A scheduler and its simulated worker, at second 10 of its clock."""
    limits = SchedulerLimits(rows, total, prefill, stretch, caching)
    scheduler = Scheduler(limits, BlockPool(blocks, size), clock=lambda: 10.0)
    return Harness(scheduler, SimulatedWorker(blocks, size))


def prompt(count: int, first: int = 0) -> list[int]:
    """`count` token ids without repetition; another `first`, another text."""
    return [(first + index * 7) % 50 for index in range(count)]
