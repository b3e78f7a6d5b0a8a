"""A worker without a model: it remembers what every KV slot holds and checks it before reading.

Tokens are drawn from the whole prefix, so that a wrong slot, a lost block or a preemption that
forgot something changes the output. Up to `depth` plans may be out; what they draw stays in the
worker's rows until it is collected.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import chain

from tiercel.cache.pool import BlockPool
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.messages import TokenDelta
from tiercel.wire.request import GenerationRequest, Grammar, SamplingParams
from tiercel.wire.step import (
    PromptLogprobs,
    RowFailure,
    RowSlice,
    SampledToken,
    StepOutput,
    StepPlan,
)

VOCAB = 50
GARBAGE = -1  # drawn for a row whose state was lost by a failure


def request(
    number: int,
    token_ids: list[int],
    max_new_tokens: int = 4,
    *,
    stop: tuple[int, ...] = (),
    prompt_logprobs: bool = False,
    salt: bytes = b"",
    grammar: bool = False,
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
        grammar=Grammar("regex", ".*") if grammar else None,
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
    lost: bool = False  # a step with it failed: what it computes now means nothing


@dataclass
class _Order:
    """A plan that is out, and what will go wrong with it."""

    plan: StepPlan
    fail_rows: frozenset[int]
    fails: bool


class StepFailed(Exception):
    """A whole step failed, as it was told to."""


class SimulatedWorker:
    """Runs plans. A slot holds (position, state of the prefix that ends there)."""

    def __init__(self, num_blocks: int, block_tokens: int, depth: int = 1) -> None:
        self.depth = depth
        self._size = block_tokens
        self._slots: list[tuple[int, int] | None] = [None] * (num_blocks * block_tokens)
        self._rows: dict[int, _Row] = {}
        self._orders: deque[_Order] = deque()

    def submit(
        self, plan: StepPlan, *, fail_rows: frozenset[int] = frozenset(), fails: bool = False
    ) -> None:
        """Take a plan, to be run as late as it can be: when it is collected."""
        assert len(self._orders) < self.depth, "too many steps are out"
        self._orders.append(_Order(plan, fail_rows, fails))

    def collect(self, total_s: float = 0.01) -> StepOutput:
        """Run the oldest plan that is out. Raises StepFailed where that was ordered."""
        order = self._orders.popleft()
        if order.fails:
            self._fail(order.plan)
            raise StepFailed("injected")
        return self.run(order.plan, fail_rows=order.fail_rows, total_s=total_s)

    def _fail(self, plan: StepPlan) -> None:
        """Rows take their blocks and are lost; what is to be written is overwritten."""
        for start in plan.starts:
            self._rows[start.row] = _Row(list(start.token_ids), start.prompt_tokens, False)
        self._add_blocks(plan)
        for piece in plan.slices:
            self._lose(self._rows[piece.row], piece)

    def _lose(self, row: _Row, piece: RowSlice) -> None:
        row.lost = True
        for position in range(piece.start, piece.start + piece.count):
            self._slots[self._slot(row, position)] = None

    def _slot(self, row: _Row, position: int) -> int:
        return row.blocks[position // self._size] * self._size + position % self._size

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
            if row.lost:
                self._lose(row, piece)
                sampled.append(SampledToken(piece.row, GARBAGE, 0.0))
                continue
            end = piece.start + piece.count
            assert end <= len(row.tokens) and end <= len(row.blocks) * self._size
            assert piece.sample == (end == len(row.tokens))
            state = self._compute(row, piece.start, end, written)
            if piece.row in fail_rows:
                failures.append(RowFailure(piece.row, "injected"))
                self._lose(row, piece)
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
            slot = self._slot(row, position)
            if position >= start:
                assert slot not in written, f"slot {slot} is written twice in one step"
                written.add(slot)
                self._slots[slot] = (position, state)
            else:
                assert self._slots[slot] == (position, state), f"slot {slot} holds something else"
        return state


class Harness:
    """A scheduler, its worker, and everything that came out, checked after every step.

    As many steps are out as the worker's depth says, in the engine's order: plan, submit, and land
    the oldest if there is no room for another or none could be planned.
    """

    def __init__(self, scheduler: Scheduler, worker: SimulatedWorker) -> None:
        self.scheduler = scheduler
        self.worker = worker
        self.out: deque[StepPlan] = deque()
        self.tokens: dict[int, list[int]] = {}
        self.deltas: dict[int, list[TokenDelta]] = {}
        self.ended: dict[int, str] = {}  # finish reason, or "error"
        self.first_scheduled: list[int] = []
        self.plans: list[StepPlan] = []
        self.dropped: Counter[int] = Counter()  # slices that landed after the end, by request
        self._oldest = (-1, 0)  # request and planned tokens of the oldest sequence
        self._stalled = 0  # steps in a row in which it got nothing

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
        for piece in plan.slices:
            sequence = running[piece.row]
            assert piece.start + piece.count < sequence.max_tokens, "its last token is computed"
            out = sum(piece.row == each.row for each in chain(*(p.slices for p in self.out)))
            assert out < (1 if sequence.request.grammar else self.worker.depth), "planned too far"
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

    def submit(
        self, plan: StepPlan, *, fail_rows: frozenset[int] = frozenset(), fails: bool = False
    ) -> None:
        """The plan goes out; its rows or all of it will fail."""
        self.worker.submit(plan, fail_rows=fail_rows, fails=fails)
        self.out.append(plan)

    def land(self, total_s: float = 0.01) -> None:
        """Collect and apply the oldest plan that is out."""
        plan = self.out.popleft()
        for sequence in self.scheduler._flights._out[plan.step].sequences:
            if sequence.ended:
                self.dropped[sequence.id] += 1
                # Length is known beforehand; other ends when as many steps more are out.
                ahead = {"length": 0, "eos_token": self.worker.depth - 1}
                most = ahead.get(self.ended.get(sequence.id, "aborted"), self.worker.depth)
                assert self.dropped[sequence.id] <= most
        try:
            output = self.worker.collect(total_s)
        except StepFailed as error:
            self.take(self.scheduler.fail_plan(plan, str(error)))
        else:
            self.take(self.scheduler.apply(plan, output))

    def advance(self, planned: bool, total_s: float = 0.01) -> None:
        """The rest of a step, after a plan went out or none could be made."""
        if self.out and (not planned or len(self.out) == self.worker.depth):
            self.land(total_s)
        self._check_progress()

    def _check_progress(self) -> None:
        """The oldest sequence is never kept waiting for long, whatever the others do."""
        running = self.scheduler._running
        oldest = (running[0].id, running[0].planned) if running else (-1, 0)
        waits = bool(running) and oldest == self._oldest
        self._stalled = self._stalled + 1 if waits else 0
        self._oldest = oldest
        # Twice a step to measure decoding, and until whoever holds its blocks has landed.
        assert self._stalled <= 4 * self.worker.depth, "the oldest sequence starves"

    def step(self, total_s: float = 0.01) -> StepPlan | None:
        """One whole step."""
        plan = self.plan()
        if plan is not None:
            self.submit(plan)
        self.advance(plan is not None, total_s)
        return plan

    def drain(self, most_steps: int) -> int:
        """Step until idle; the number of steps. AssertionError beyond `most_steps`."""
        for steps in range(most_steps + 1):
            if self.scheduler.idle:
                return steps
            out = len(self.out)
            assert self.step() is not None or out, "work is left and nothing is scheduled"
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
    depth: int = 1,
) -> Harness:
    """A scheduler and its simulated worker, at second 10 of its clock."""
    limits = SchedulerLimits(rows, total, prefill, stretch, caching)
    scheduler = Scheduler(limits, BlockPool(blocks, size), lookahead=depth - 1, clock=lambda: 10.0)
    return Harness(scheduler, SimulatedWorker(blocks, size, depth))


def prompt(count: int, first: int = 0) -> list[int]:
    """`count` token ids without repetition; another `first`, another text."""
    return [(first + index * 7) % 50 for index in range(count)]
