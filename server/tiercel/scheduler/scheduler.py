"""The scheduler: which tokens run next, in which rows and blocks, and what came of them.

One arithmetic: each step hands out known minus computed tokens under a budget. Prefill, chunks,
prefix hits, decode and resuming after preemption are this one rule. It owns all sequences; the
blocks are the pool's, the tensors the worker's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tiercel.cache.lookup import NO_MATCH, PrefixMatch, find_prefix
from tiercel.cache.pool import Allocation, BlockPool, InvariantError
from tiercel.cache.prefix import PrefixChain
from tiercel.scheduler.budget import Allowance, PrefillBudget, StepShape, describe
from tiercel.scheduler.limits import SchedulerLimits, refuse_what_never_fits
from tiercel.scheduler.sequence import NO_ROW, Sequence
from tiercel.scheduler.waiting import FirstComeFirstServed, WaitingQueue
from tiercel.wire.messages import EngineStats, TokenDelta
from tiercel.wire.request import GenerationRequest
from tiercel.wire.step import RowSlice, RowStart, StepOutput, StepPlan


@dataclass
class _Draft:
    """A plan while it is made: decode slices and longer ones, with their sequences."""

    allowance: Allowance
    starts: list[RowStart] = field(default_factory=list)
    decodes: list[RowSlice] = field(default_factory=list)
    decoding: list[Sequence] = field(default_factory=list)
    prefills: list[RowSlice] = field(default_factory=list)
    prefilling: list[Sequence] = field(default_factory=list)


@dataclass(frozen=True)
class _Flight:
    """A plan that is out: its sequences, in the order of its slices."""

    plan: StepPlan
    sequences: list[Sequence]


class Scheduler:
    """All sequences of one engine. Called from one thread: schedule, run the plan, apply."""

    def __init__(
        self,
        limits: SchedulerLimits,
        pool: BlockPool,
        *,
        clock: Callable[[], float] = time.monotonic,
        waiting: WaitingQueue | None = None,
    ) -> None:
        """`clock` is the one that `GenerationRequest.arrival_s` was read from."""
        self._limits = limits
        self._pool = pool
        self._clock = clock
        self._waiting: WaitingQueue = FirstComeFirstServed() if waiting is None else waiting
        self._running: list[Sequence] = []  # in order of admission; the last one is preempted first
        self._sequences: dict[int, Sequence] = {}
        self._free_rows = list(range(limits.max_rows - 1, -1, -1))
        self._flights: dict[int, _Flight] = {}
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
        sequence = Sequence(request, chain, Allocation(self._pool))
        self._sequences[request.id] = sequence
        self._waiting.append(sequence)

    def abort(self, request_id: int) -> bool:
        """Nobody waits for it any more; it makes no further delta. False: it has ended already.

        Its row and blocks are free at once, or after `apply` if a step with it is out.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None or sequence.aborted:
            return False
        sequence.aborted = True
        self._aborted += 1
        if not sequence.in_flight:
            self._end(sequence)
        return True

    def schedule(self) -> StepPlan | None:
        """The next step, or None if nothing can run now.

        Sequences of a plan that is out are left alone until it is applied.
        """
        decode_rows = 0
        for sequence in self._running:
            if len(sequence.tokens) - sequence.computed == 1 and not sequence.in_flight:
                decode_rows += 1
        draft = self._draft(decode_rows)
        slices = draft.decodes + draft.prefills
        if not slices and decode_rows and not self._flights:
            # The budget kept prefill out to measure decoding, but no decoding row finds a block:
            # nobody would run now or ever, so prefill goes on unmeasured.
            draft = self._draft(0)
            slices = draft.decodes + draft.prefills
        if not slices:
            return None
        plan = StepPlan(self._next_step, draft.starts, slices)
        self._next_step += 1
        self._flights[plan.step] = _Flight(plan, draft.decoding + draft.prefilling)
        return plan

    def _draft(self, decode_rows: int) -> _Draft:
        draft = _Draft(self._budget.open(decode_rows))
        self._continue_running(draft)
        self._admit_waiting(draft)
        return draft

    def apply(self, plan: StepPlan, output: StepOutput) -> list[TokenDelta]:
        """Take in what a step computed: one delta per sequence that gained a token or failed."""
        if output.step != plan.step:
            raise ValueError(f"the output of step {output.step} is not that of step {plan.step}")
        flight = self._land(plan)
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
            sequence.in_flight = False
            failed = piece.row in failures
            if sequence.aborted:
                self._end(sequence, failed=failed)
                continue
            if failed:
                deltas.append(sequence.fail(failures[piece.row].message, "generation"))
                self._end(sequence, failed=True)
                continue
            sequence.advance(piece.count, size)
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
        """The whole step failed: every sequence in it ends with an error, and no other does."""
        deltas = []
        for sequence in self._land(plan).sequences:
            sequence.in_flight = False
            if not sequence.aborted:
                deltas.append(sequence.fail(message, error_type))
            self._end(sequence, failed=True)
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
        tables = []
        rows = list(self._free_rows)
        for sequence in self._running:
            blocks = sequence.allocation.blocks
            if len(blocks) * self._pool.block_tokens < sequence.computed:
                raise InvariantError(f"sequence {sequence.id} computed more than its blocks hold")
            tables.append(blocks)
            rows.append(sequence.row)
        if sorted(rows) != list(range(self._limits.max_rows)):
            raise InvariantError(f"rows are lost or held twice: {sorted(rows)}")
        if len(self._running) + len(self._waiting) != len(self._sequences):
            raise InvariantError("a sequence neither runs nor waits")
        self._pool.check_integrity(tables)

    def _continue_running(self, draft: _Draft) -> None:
        """Oldest first, so that whoever is preempted for a block has no slice in this plan yet."""
        running = self._running
        size = self._pool.block_tokens
        index = 0
        while index < len(running):
            sequence = running[index]
            index += 1
            if sequence.in_flight:
                continue
            held = len(sequence.allocation.blocks)
            count = len(sequence.tokens) - sequence.computed
            hits = NO_MATCH
            if count == 1 and sequence.computed < held * size:
                # Nearly always: nothing to decide, so `_add_slice` would only cost time.
                sequence.in_flight = True
                draft.decodes.append(RowSlice(sequence.row, sequence.computed, 1, [], True))
                draft.decoding.append(sequence)
                continue
            if count > 1:
                # Others may have computed the next blocks since the last chunk.
                if held * size == sequence.computed:
                    hits = self._match(sequence, held)
                count = draft.allowance.offer(count - hits.tokens, sequence.computed + hits.tokens)
            if count and self._make_room(sequence, hits, count, index):
                self._add_slice(draft, sequence, hits, count)

    def _make_room(self, sequence: Sequence, hits: PrefixMatch, count: int, after: int) -> bool:
        """Preempt sequences from `after` on, youngest first, until a slice's blocks are free.

        False: too few even then; the sequence keeps what it has and waits a step. The oldest one
        can always get what it needs, so it always progresses.
        """
        pool = self._pool
        end = sequence.computed + hits.tokens + count
        new = pool.blocks_for(end) - len(sequence.allocation.blocks) - len(hits.blocks)
        index = len(self._running) - 1
        while pool.free_blocks < new + pool.count_free(hits.blocks):
            while index >= after and self._running[index].in_flight:
                index -= 1
            if index < after:
                return False
            self._preempt(self._running.pop(index))
            index -= 1
        return True

    def _admit_waiting(self, draft: _Draft) -> None:
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

    def _add_slice(self, draft: _Draft, sequence: Sequence, hits: PrefixMatch, count: int) -> None:
        """`count` tokens after those in `hits`. The blocks needed are known to be free."""
        allocation = sequence.allocation
        if hits.tokens:
            allocation.share(hits.blocks)
            sequence.computed += hits.tokens
            sequence.published = len(allocation.blocks)
            if not sequence.resumed:
                sequence.cached_tokens += hits.tokens
                self._prefix_hit_tokens += hits.tokens
        start = sequence.computed
        end = start + count
        missing = self._pool.blocks_for(end) - len(allocation.blocks)
        new_blocks = hits.blocks + allocation.grow(max(0, missing))
        sample = end == len(sequence.tokens)
        sequence.in_flight = True
        piece = RowSlice(sequence.row, start, count, new_blocks, sample, hits.source)
        if count == 1:
            draft.decodes.append(piece)
            draft.decoding.append(sequence)
        else:
            draft.prefills.append(piece)
            draft.prefilling.append(sequence)
            draft.allowance.spend(count, start)

    def _land(self, plan: StepPlan) -> _Flight:
        flight = self._flights.get(plan.step)
        if flight is None or flight.plan is not plan:
            raise ValueError(f"step {plan.step} is not out")
        del self._flights[plan.step]
        return flight

    def _preempt(self, sequence: Sequence) -> None:
        """Its blocks and row go; its tokens stay known and are computed again later."""
        sequence.remember_rest(self._pool.block_tokens)
        self._vacate(sequence)
        sequence.start_over(Allocation(self._pool))
        self._preemptions += 1
        self._waiting.put_back(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        sequence.allocation.release()
        self._free_rows.append(sequence.row)
        sequence.row = NO_ROW

    def _end(self, sequence: Sequence, *, failed: bool = False) -> None:
        """It is gone. Where its step `failed`, perhaps nothing was copied to its last block."""
        del self._sequences[sequence.id]
        if sequence.row == NO_ROW:
            self._waiting.remove(sequence)
            return
        self._running.remove(sequence)
        if not failed:
            sequence.remember_rest(self._pool.block_tokens)
        self._vacate(sequence)
