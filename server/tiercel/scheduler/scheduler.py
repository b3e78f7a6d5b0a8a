"""The scheduler: which tokens run next, in which rows and blocks, and what came of them.

One arithmetic: each step hands out known minus planned tokens under a budget. Prefill, chunks,
prefix hits, decode, resuming after preemption and steps planned ahead are this one rule. It owns
all sequences; the blocks are the pool's, the tensors the worker's.
"""

import time
from collections.abc import Callable

from tiercel.cache.lookup import NO_MATCH, PrefixMatch, find_prefix
from tiercel.cache.pool import Allocation, BlockPool, InvariantError
from tiercel.cache.prefix import PrefixChain
from tiercel.scheduler.budget import PrefillBudget, StepShape, describe
from tiercel.scheduler.draft import Draft
from tiercel.scheduler.flights import Flights
from tiercel.scheduler.integrity import check_rows
from tiercel.scheduler.limits import SchedulerLimits, refuse_what_never_fits
from tiercel.scheduler.sequence import NO_ROW, Sequence
from tiercel.scheduler.waiting import FirstComeFirstServed, WaitingQueue
from tiercel.wire.messages import EngineStats, TokenDelta
from tiercel.wire.request import GenerationRequest
from tiercel.wire.step import RowSlice, StepOutput, StepPlan


class Scheduler:
    """All sequences of one engine. Called from one thread: schedule, run the plan, apply.

    With `lookahead` 0 a sequence is in one plan at a time. With more it may be in that many
    others while one is out: plans then run in the order in which they were made, and are applied
    in it. What is out of a sequence that has ended is dropped; it keeps its row and blocks until
    the last of it has landed, so that nothing out ever reads or writes what belongs to another.
    One thing is not held: the source of a copy. It may be given to a later plan, which writes it
    after the copy was made.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        pool: BlockPool,
        *,
        lookahead: int = 0,
        clock: Callable[[], float] = time.monotonic,
        waiting: WaitingQueue | None = None,
    ) -> None:
        """`clock` is the one that `GenerationRequest.arrival_s` was read from."""
        if lookahead < 0:
            raise ValueError(f"lookahead must not be negative: {lookahead}")
        self._lookahead = lookahead
        self._limits = limits
        self._pool = pool
        self._clock = clock
        self._waiting: WaitingQueue = FirstComeFirstServed() if waiting is None else waiting
        self._running: list[Sequence] = []  # in order of admission; the last one is preempted first
        self._sequences: dict[int, Sequence] = {}
        self._free_rows = list(range(limits.max_rows - 1, -1, -1))
        self._flights = Flights(in_order=lookahead > 0)
        self._budget = PrefillBudget(
            limits.max_batch_prefill_tokens, limits.step_stretch, pool.block_tokens
        )
        self._next_step = 0
        self._preemptions = 0
        self._prefix_hit_tokens = 0
        self._prefix_query_tokens = 0
        self._generated_tokens = 0
        self._aborted = 0

    def add(self, request: GenerationRequest) -> None:
        """Queue a request. Raises NeverFits; ValueError for an empty one or an id in use."""
        if request.id in self._sequences:
            raise ValueError(f"request {request.id} is known already")
        refuse_what_never_fits(request, self._limits, self._pool)
        chain = None
        if self._limits.prefix_caching:
            chain = PrefixChain(self._pool.block_tokens, request.cache_salt)
        sequence = Sequence(request, chain, Allocation(self._pool), ahead=self._lookahead > 0)
        self._sequences[request.id] = sequence
        self._waiting.append(sequence)

    def abort(self, request_id: int) -> bool:
        """Nobody waits for it any more; it makes no further delta. False: it has ended already.

        Its row and blocks are free at once, or once every step that is out with it has landed.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None or sequence.ended:
            return False
        self._aborted += 1
        self._end(sequence)
        return True

    def schedule(self) -> StepPlan | None:
        """The next step, or None if nothing can run now.

        Sequences of a plan that is out are left alone until it is applied, unless they may go
        ahead of it.
        """
        if 0 < self._lookahead < len(self._flights):
            return None
        due = self._due()
        decode_rows = 0
        for sequence in due:
            if len(sequence.tokens) - sequence.planned <= 1:
                decode_rows += 1
        draft = self._draft(due, decode_rows)
        if draft.empty and decode_rows and not self._flights:
            # The budget kept prefill out to measure decoding, but no decoding row finds a block:
            # nobody would run now or ever, so prefill goes on unmeasured.
            draft = self._draft(due, 0)
        if draft.empty:
            return None
        plan = StepPlan(self._next_step, draft.starts, draft.decodes + draft.prefills)
        self._next_step += 1
        self._flights.start(plan, draft.decoding + draft.prefilling)
        return plan

    def _due(self) -> list[Sequence]:
        """The running sequences that may be in the next step, oldest first."""
        if not self._flights:
            return self._running.copy()
        return [
            sequence
            for sequence in self._running
            if sequence.planned == sequence.computed
            or (sequence.ahead and sequence.planned < sequence.computable)
        ]

    def _draft(self, due: list[Sequence], decode_rows: int) -> Draft:
        draft = Draft(self._budget.open(decode_rows))
        self._continue_running(draft, due)
        if not draft.blocked:
            self._admit_waiting(draft)
        return draft

    def apply(self, plan: StepPlan, output: StepOutput) -> list[TokenDelta]:
        """Take in what a step computed: one delta per sequence that gained a token or failed.

        Raises ValueError for a plan that is not out or, with lookahead, not the oldest.
        """
        if output.step != plan.step:
            raise ValueError(f"the output of step {output.step} is not that of step {plan.step}")
        flight = self._flights.land(plan)
        self._budget.observe(describe(plan), output.total_s)
        sampled = {token.row: token for token in output.sampled}
        failures = {failure.row: failure for failure in output.failures}
        for values in output.prompt_logprobs:
            for sequence in flight.sequences:
                if sequence.row == values.row:
                    sequence.add_prompt_logprobs(values)
        deltas: list[TokenDelta] = []
        size = self._pool.block_tokens
        for sequence, piece in zip(flight.sequences, plan.slices, strict=True):
            if sequence.ended:
                sequence.drop(piece.start + piece.count)
                self._leave(sequence)
                continue
            if failures and piece.row in failures:
                sequence.drop(piece.start + piece.count)
                deltas.append(sequence.fail(failures[piece.row].message, "generation"))
                self._end(sequence, failed=True)
                continue
            sequence.advance(piece.start, piece.count, size)
            if not piece.sample:
                continue
            token = sampled.get(piece.row)
            if token is None:
                deltas.append(sequence.fail("the worker returned no token", "generation"))
                self._end(sequence)
                continue
            self._generated_tokens += 1
            delta = sequence.add_token(token)
            deltas.append(delta)
            if delta.finish_reason is not None:
                self._end(sequence)
        return deltas

    def fail_plan(
        self, plan: StepPlan, message: str, error_type: str = "generation"
    ) -> list[TokenDelta]:
        """The whole step failed: every sequence in it ends with an error, and no other does.

        What steps that are still out compute for them is dropped. Raises like `apply`.
        """
        deltas = []
        for sequence, piece in zip(self._flights.land(plan).sequences, plan.slices, strict=True):
            sequence.drop(piece.start + piece.count)
            if sequence.ended:
                self._leave(sequence)
                continue
            deltas.append(sequence.fail(message, error_type))
            self._end(sequence, failed=True)
        return deltas

    def shed(self, plans: list[StepPlan], message: str) -> list[TokenDelta]:
        """There is no memory for the first of these plans, all that are out: the newest sequence in
        them ends with an error, the others are computed again. Raises like `apply`.
        """
        touched = set()
        for plan in plans:
            sequences = self._flights.land(plan).sequences
            for sequence, piece in zip(sequences, plan.slices, strict=True):
                sequence.drop(piece.start + piece.count)
                touched.add(sequence.id)
        deltas: list[TokenDelta] = []
        for sequence in [each for each in reversed(self._running) if each.id in touched]:
            if sequence.ended:
                self._leave(sequence)
            elif not deltas:
                deltas.append(sequence.fail(message, "generation"))
                self._end(sequence, failed=True)
            else:
                self._running.remove(sequence)
                self._start_over(sequence)
        return deltas

    @staticmethod
    def describe(plan: StepPlan) -> StepShape:
        """The sizes of a plan, for timing records."""
        return describe(plan)

    def stats(self) -> EngineStats:
        """The state now; counters since the start."""
        pool = self._pool
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            free_blocks=pool.free_blocks,
            total_blocks=pool.num_blocks,
            cached_blocks=pool.cached_blocks,
            preemptions=self._preemptions,
            prefix_hit_tokens=self._prefix_hit_tokens,
            prefix_query_tokens=self._prefix_query_tokens,
            generated_tokens=self._generated_tokens,
            aborted=self._aborted,
            running_max_tokens=(pool.num_blocks - pool.free_blocks) * pool.block_tokens,
            waiting_tokens=self._waiting.tokens,
        )

    @property
    def idle(self) -> bool:
        """No sequence is running, waiting or in a step that is out."""
        return not self._sequences

    def check_integrity(self) -> None:
        """Raises InvariantError that names the block, row or sequence that is not accounted for."""
        size = self._pool.block_tokens
        tables = check_rows(self._running, self._free_rows, self._limits.max_rows, size)
        if len(self._running) + len(self._waiting) != len(self._sequences):
            raise InvariantError("a sequence neither runs nor waits")
        self._flights.check_integrity(self._running)
        self._pool.check_integrity(tables)

    def _continue_running(self, draft: Draft, due: list[Sequence]) -> None:
        """Oldest first, so that whoever is preempted for a block has no slice in this plan yet."""
        size = self._pool.block_tokens
        for sequence in due:
            row = sequence.row
            if row == NO_ROW:
                continue  # preempted for an older one
            held = len(sequence.allocation.blocks)
            planned = sequence.planned
            count = len(sequence.tokens) - planned
            hits = NO_MATCH
            if count <= 1:
                if planned < held * size:
                    # Nearly always: nothing to decide, so `_add_slice` would only cost time.
                    sequence.planned = planned + 1
                    draft.decodes.append(RowSlice(row, planned, 1, [], True))
                    draft.decoding.append(sequence)
                    continue
                count = 1
            else:
                # Others may have computed the next blocks since the last chunk.
                if held * size == planned:
                    hits = self._match(sequence, held)
                count = draft.allowance.offer(count - hits.tokens, planned + hits.tokens)
            if count and self._make_room(draft, sequence, hits, count):
                self._add_slice(draft, sequence, hits, count)
            if draft.blocked:
                return

    def _make_room(self, draft: Draft, sequence: Sequence, hits: PrefixMatch, count: int) -> bool:
        """Preempt sequences younger than this one, youngest first, until its blocks are free.

        False: too few even then; the sequence keeps what it has and waits a step. The oldest one
        can always get what it needs, so it always progresses: who would be preempted but is in a
        step that is out is waited for. With lookahead nearly everybody always is, so nobody
        younger gets a slice before that.
        """
        pool, running = self._pool, self._running
        end = sequence.planned + hits.tokens + count
        new = pool.blocks_for(end) - len(sequence.allocation.blocks) - len(hits.blocks)
        index = len(running) - 1
        while pool.free_blocks < new + pool.count_free(hits.blocks):
            while running[index].in_flight and running[index] is not sequence:
                if self._lookahead:
                    draft.blocked = True
                    return False
                index -= 1
            if running[index] is sequence:
                return False
            self._preempt(running.pop(index))
            index -= 1
        return True

    def _admit_waiting(self, draft: Draft) -> None:
        """In the queue's order, until rows, blocks or budget end: nobody overtakes the first."""
        reserved: int | None = None
        while self._free_rows:
            sequence = self._waiting.peek()
            if sequence is None:
                return
            if reserved is None:
                reserved = sum(self._reserve(other) for other in self._running)
            hits = self._match(sequence, 0)
            known, start = len(sequence.tokens), hits.tokens
            count = draft.allowance.offer(known - start, start)
            # All known tokens, not only this chunk, and room for everyone's next block: a
            # sequence that would soon be preempted again is not let in. Alone, it always fits.
            shared = hits.blocks
            needed = self._pool.blocks_for(known) - len(shared) + self._pool.count_free(shared)
            spare = reserved + 1 if self._running else 0
            if not count or needed + spare > self._pool.free_blocks:
                return
            self._waiting.remove(sequence)
            self._admit(sequence)
            draft.starts.append(sequence.row_start())
            self._add_slice(draft, sequence, hits, count)
            reserved += self._reserve(sequence)

    def _reserve(self, sequence: Sequence) -> int:
        """Blocks that a running sequence has yet to take for its known tokens, and one more."""
        missing = self._pool.blocks_for(len(sequence.tokens)) - len(sequence.allocation.blocks)
        return max(0, missing) + 1

    def _admit(self, sequence: Sequence) -> None:
        sequence.row = self._free_rows.pop()
        self._running.append(sequence)
        if sequence.queue_s is None:
            sequence.queue_s = max(0.0, self._clock() - sequence.request.arrival_s)
            if sequence.reads_prefix_cache:
                self._prefix_query_tokens += sequence.prompt_tokens

    def _match(self, sequence: Sequence, first: int) -> PrefixMatch:
        """What is cached from block `first` on; the last known token always stays to compute."""
        if sequence.chain is None or not sequence.reads_prefix_cache:
            return NO_MATCH
        return find_prefix(self._pool, sequence.chain, sequence.tokens, first)

    def _add_slice(self, draft: Draft, sequence: Sequence, hits: PrefixMatch, count: int) -> None:
        """`count` tokens after those in `hits`. The blocks needed are known to be free."""
        allocation = sequence.allocation
        if hits.tokens:
            allocation.share(hits.blocks)
            sequence.planned += hits.tokens
            if not sequence.resumed:
                sequence.cached_tokens += hits.tokens
                self._prefix_hit_tokens += hits.tokens
        start = sequence.planned
        end = start + count
        missing = self._pool.blocks_for(end) - len(allocation.blocks)
        new_blocks = hits.blocks + allocation.grow(max(0, missing))
        sample = end >= len(sequence.tokens)
        sequence.planned = end
        piece = RowSlice(sequence.row, start, count, new_blocks, sample, hits.source)
        draft.add(sequence, piece)

    def _preempt(self, sequence: Sequence) -> None:
        """Its blocks and row go; its tokens stay known and are computed again later."""
        sequence.remember_rest(self._pool.block_tokens)
        self._start_over(sequence)

    def _start_over(self, sequence: Sequence) -> None:
        self._vacate(sequence)
        sequence.start_over(Allocation(self._pool))
        self._preemptions += 1
        self._waiting.put_back(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        sequence.allocation.release()
        self._free_rows.append(sequence.row)
        sequence.row = NO_ROW

    def _end(self, sequence: Sequence, *, failed: bool = False) -> None:
        """It makes no further delta, and is gone as soon as no step is out with it."""
        if not failed:
            sequence.remember_rest(self._pool.block_tokens)
        sequence.end()
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """An ended sequence gives everything back, unless a step is still out with it."""
        if sequence.in_flight:
            return
        del self._sequences[sequence.id]
        if sequence.row == NO_ROW:
            self._waiting.remove(sequence)
            return
        self._running.remove(sequence)
        self._vacate(sequence)
