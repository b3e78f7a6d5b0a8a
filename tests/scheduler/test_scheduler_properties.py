"""Whatever arrives, ends, fails or is aborted: nothing is lost, nobody starves."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.simulated_worker import Harness, SimulatedWorker, alone, request
from tiercel.cache.pool import BlockPool
from tiercel.scheduler.limits import NeverFits, SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.scheduler.sequence import Sequence
from tiercel.wire.request import GenerationRequest

SHARED = [index % 6 for index in range(48)]  # equal blocks after different prefixes


class SchedulerMachine(RuleBasedStateMachine):
    """A scheduler in a tiny pool, with a worker that checks every KV slot it reads.

    `depth` steps may be out, so between two rules all but one of them are.
    """

    depth = 1

    def __init__(self) -> None:
        super().__init__()
        self.harness: Harness
        self.asked: dict[int, GenerationRequest] = {}
        self.order: list[int] = []
        self.aborted: set[int] = set()
        self.failed: set[int] = set()  # unless they had ended before the step that failed
        self.leaving: list[tuple[Sequence, set[int]]] = []  # aborted, and the steps out with it

    @initialize(
        blocks=st.integers(3, 24),
        size=st.sampled_from([1, 2, 4]),
        rows=st.integers(1, 6),
        prefill=st.integers(1, 40),
        stretch=st.sampled_from([0.0, 1.0, 4.0]),
        caching=st.booleans(),
    )
    def start(
        self, blocks: int, size: int, rows: int, prefill: int, stretch: float, caching: bool
    ) -> None:
        limits = SchedulerLimits(rows, 200, prefill, stretch, caching)
        pool, ahead = BlockPool(blocks, size), self.depth - 1
        scheduler = Scheduler(limits, pool, lookahead=ahead, clock=lambda: 0.0)
        self.harness = Harness(scheduler, SimulatedWorker(blocks, size, self.depth))

    @rule(
        shared=st.integers(0, 48),
        own=st.lists(st.integers(0, 2), max_size=6),
        new=st.integers(1, 20),
        stop=st.sets(st.integers(0, 49), max_size=4),
        logprobs=st.booleans(),
        grammar=st.booleans(),
    )
    def add(
        self,
        shared: int,
        own: list[int],
        new: int,
        stop: set[int],
        logprobs: bool,
        grammar: bool = False,
    ) -> None:
        number = len(self.asked)
        tokens = SHARED[:shared] + (own or [1])
        made = request(
            number, tokens, new, stop=tuple(stop), prompt_logprobs=logprobs, grammar=grammar
        )
        self.asked[number] = made
        try:
            self.harness.scheduler.add(made)
        except NeverFits:
            pool = self.harness.scheduler._pool
            assert pool.blocks_for(len(tokens) + new - 1) > pool.num_blocks
            self.failed.add(number)
        else:
            self.order.append(number)

    def live(self) -> dict[int, Sequence]:
        """Sequences that have not ended."""
        known = self.harness.scheduler._sequences
        return {number: s for number, s in known.items() if not s.ended}

    @rule(total_s=st.sampled_from([0.0, 0.01, 0.05, 3.0]))
    def step(self, total_s: float) -> None:
        self.harness.step(total_s)

    @precondition(lambda self: self.depth == 1)
    @rule(tokens=st.integers(1, 12), new=st.integers(1, 20), reverse=st.booleans())
    def overlap(self, tokens: int, new: int, reverse: bool) -> None:
        """A second plan while the first is out, applied in either order."""
        made = self.harness
        first = made.plan()
        self.add(0, [2] * tokens, new, set(), False)
        second = made.plan()
        plans = [plan for plan in (first, second) if plan is not None]
        outputs = [(plan, made.worker.run(plan)) for plan in plans]
        for plan, output in reversed(outputs) if reverse else outputs:
            made.take(made.scheduler.apply(plan, output))

    @precondition(lambda self: self.live())
    @rule(data=st.data(), under_a_step=st.booleans())
    def abort(self, data: st.DataObject, under_a_step: bool) -> None:
        made = self.harness
        plan = made.plan() if under_a_step else None
        if plan is not None:
            made.submit(plan)
        number = data.draw(st.sampled_from(sorted(self.live())))
        sequence = self.live()[number]
        assert made.scheduler.abort(number)
        self.aborted.add(number)
        self.leaving.append((sequence, {each.step for each in made.out}))
        if plan is not None:
            made.advance(True)

    @rule(data=st.data())
    def fail_rows(self, data: st.DataObject) -> None:
        made = self.harness
        plan = made.plan()
        if plan is not None:
            chosen = st.sampled_from([piece.row for piece in plan.slices])
            rows = data.draw(st.frozensets(chosen, min_size=1))
            self.failed |= {s.id for s in made.scheduler._running if s.row in rows}
            made.submit(plan, fail_rows=rows)
        made.advance(plan is not None)

    @rule()
    def fail_plan(self) -> None:
        made = self.harness
        plan = made.plan()
        if plan is not None:
            rows = {piece.row for piece in plan.slices}
            self.failed |= {s.id for s in made.scheduler._running if s.row in rows}
            made.submit(plan, fails=True)
        made.advance(plan is not None)

    @invariant()
    def aborted_ones_leave_with_the_steps_that_are_out(self) -> None:
        still = {plan.step for plan in self.harness.out}
        for sequence, steps in self.leaving:
            if not steps & still:
                assert sequence.allocation.blocks == []
                assert self.harness.scheduler._sequences.get(sequence.id) is not sequence

    @invariant()
    def books_balance(self) -> None:
        self.harness.scheduler.check_integrity()
        stats = self.harness.scheduler.stats()
        assert stats.aborted == len(self.aborted)
        if not stats.running:
            assert stats.free_blocks == stats.total_blocks

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        made = self.harness
        # Even alone, one step after the other: a token per step, and at most every other step a
        # probe; twice for what was preempted before it became the oldest.
        work = sum(
            len(sequence.tokens) + sequence.request.max_new_tokens
            for sequence in self.live().values()
        )
        # With more steps out: a step that only lands for each, and a grammar's row waits for each.
        made.drain(4 * work * self.depth + self.depth)
        stats = made.scheduler.stats()
        assert stats.free_blocks == stats.total_blocks
        scheduled = [number for number in self.order if number in made.first_scheduled]
        assert made.first_scheduled == scheduled, "first come, first served"
        for number, asked in self.asked.items():
            tokens, reason = alone(asked)
            ended = made.ended.get(number)
            if number in self.aborted or (number in self.failed and ended in ("error", None)):
                given = made.tokens.get(number, [])
                assert given == tokens[: len(given)]
                continue
            assert (made.tokens[number], made.ended[number]) == (tokens, reason)
            logprobs = made.deltas[number][0].prompt_logprobs
            assert (logprobs is not None) == asked.prompt_logprobs
            if logprobs is not None:
                expected = [-float(position) for position in range(1, len(asked.token_ids))]
                assert logprobs == [None, *expected]


class CrampedMachine(SchedulerMachine):
    """Little room and small chunks: older ones grow, and prompts are preempted midway."""

    @initialize(
        blocks=st.integers(9, 14),
        size=st.just(4),
        rows=st.integers(2, 4),
        prefill=st.integers(1, 3),
        stretch=st.just(0.0),
        caching=st.just(True),
    )
    def start(
        self, blocks: int, size: int, rows: int, prefill: int, stretch: float, caching: bool
    ) -> None:
        super().start(blocks, size, rows, prefill, stretch, caching)

    @rule(own=st.integers(0, 2), new=st.sampled_from([8, 30]))
    def add_one_that_grows(self, own: int, new: int) -> None:
        self.add(3, [7, own], new, set(), False)

    @rule(own=st.integers(0, 2), shared=st.sampled_from([15, 24]), logprobs=st.booleans())
    def add_a_long_prompt(self, own: int, shared: int, logprobs: bool) -> None:
        self.add(shared, [own], 1, set(), logprobs)

    @rule(count=st.integers(2, 12))
    def several_steps(self, count: int) -> None:
        for _ in range(count):
            self.step(0.01)


class LookaheadMachine(SchedulerMachine):
    """The same with a step planned ahead: the same tokens have to come out."""

    depth = 2


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestCramped = CrampedMachine.TestCase
TestCramped.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestLookahead = LookaheadMachine.TestCase
TestLookahead.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
