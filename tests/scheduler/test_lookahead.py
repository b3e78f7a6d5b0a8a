"""A step planned while the one before it is out: what it contains, and what becomes of it."""

import random

import pytest

from support.simulated_worker import Harness, alone, prompt, request, simulated
from tiercel.cache.pool import Allocation, BlockPool, InvariantError
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.request import GenerationRequest
from tiercel.wire.step import StepPlan


def send(made: Harness) -> StepPlan:
    """Plan and submit a step."""
    plan = made.plan()
    assert plan is not None
    made.submit(plan)
    return plan


def shapes(plan: StepPlan) -> list[tuple[int, int, bool]]:
    return [(piece.start, piece.count, piece.sample) for piece in plan.slices]


def in_order(made: Harness, asked: list[GenerationRequest], most_steps: int) -> None:
    """Run the requests, all there from the start, and compare each with its solo run."""
    for each in asked:
        made.scheduler.add(each)
    made.drain(most_steps)
    for each in asked:
        assert (made.tokens[each.id], made.ended[each.id]) == alone(each)


def test_a_token_that_only_the_device_knows_is_planned_on() -> None:
    made = simulated(depth=2)
    asked = request(1, prompt(10), 4)
    made.scheduler.add(asked)
    assert shapes(send(made)) == [(0, 10, True)]
    plan = send(made)
    assert shapes(plan) == [(10, 1, True)]
    assert plan.starts == []
    made.scheduler.add(request(2, prompt(5, 1), 50))
    assert made.scheduler.schedule() is None, "more than two steps out"
    made.scheduler.abort(2)
    made.land()
    assert shapes(send(made)) == [(11, 1, True)]
    made.land()
    assert len(made.tokens[1]) == 2
    assert shapes(send(made)) == [(12, 1, True)]
    made.land()
    assert made.scheduler.schedule() is None, "the last token by length is never computed"
    made.land()
    assert (made.tokens[1], made.ended[1]) == alone(asked)
    assert made.scheduler.idle
    assert not made.dropped


def test_nothing_is_planned_behind_a_single_token() -> None:
    made = simulated(depth=2)
    made.scheduler.add(request(1, prompt(10), 1))
    send(made)
    assert made.scheduler.schedule() is None
    made.land()
    assert made.ended == {1: "length"}


def test_chunks_of_a_prompt_are_out_together() -> None:
    made = simulated(depth=2, prefill=10)
    asked = request(1, prompt(27), 2)
    made.scheduler.add(asked)
    planned = [shapes(send(made)), shapes(send(made))]
    while made.out:
        made.land()
        if (plan := made.plan()) is not None:
            made.submit(plan)
            planned.append(shapes(plan))
    flat = [shape for each in planned for shape in each]
    assert flat == [(0, 8, False), (8, 8, False), (16, 8, False), (24, 3, True), (27, 1, True)]
    assert (made.tokens[1], made.ended[1]) == alone(asked)


def test_a_twin_goes_on_with_the_others_blocks_while_its_own_chunk_is_out() -> None:
    made = simulated(depth=2, prefill=100)
    made.scheduler.add(request(1, prompt(80), 2))
    made.scheduler.add(request(2, prompt(80), 2))
    made.drain(12)
    assert made.tokens[1] == made.tokens[2] == alone(request(1, prompt(80), 2))[0]
    computed = sum(piece.count for plan in made.plans for piece in plan.slices)
    assert computed <= 2 * 80 + 2, "the first one's blocks are not out in time"
    made = simulated(depth=2, prefill=44)
    made.scheduler.add(request(1, prompt(80), 2))
    made.scheduler.add(request(2, prompt(80), 2))
    made.drain(12)
    assert made.tokens[1] == made.tokens[2] == alone(request(1, prompt(80), 2))[0]
    second = [(p.start, p.count) for plan in made.plans for p in plan.slices if p.row == 1]
    assert second[0][0] + second[0][1] < second[1][0], "nothing was shared between its slices"
    assert made.deltas[2][0].cached_tokens > 0


def test_an_end_by_stop_token_wastes_one_slice_and_keeps_its_blocks_that_long() -> None:
    made = simulated(depth=2)
    tokens, _ = alone(request(1, prompt(9), 3))
    made.scheduler.add(request(1, prompt(9), 50, stop=(tokens[2],)))
    made.scheduler.add(request(2, prompt(9, 1), 50))
    while 1 not in made.ended:
        made.step()
    assert (made.tokens[1], made.ended[1]) == (tokens, "eos_token")
    assert made.scheduler.stats().running == 2, "a step with it is out"
    assert not made.scheduler.abort(1), "it has ended"
    assert len(send(made).slices) == 1
    made.land()
    assert made.dropped == {1: 1}
    assert made.scheduler.stats().running == 1
    made.drain(60)
    assert made.dropped == {1: 1}
    assert made.scheduler.stats().free_blocks == 64
    assert made.scheduler.stats().generated_tokens == 53


def test_what_an_ended_sequence_computed_is_found_and_what_was_dropped_is_not() -> None:
    made = simulated(depth=2)
    tokens, _ = alone(request(1, prompt(9), 4))
    made.scheduler.add(request(1, prompt(9), 50, stop=(tokens[3],)))
    made.drain(12)
    made.scheduler.add(request(2, [*prompt(9), *tokens, 3], 2))
    plan = made.step()
    assert plan is not None
    assert plan.slices[0].start == 12  # the stop token's own slot was filled by a dropped slice
    made.drain(5)
    assert made.tokens[2] == alone(request(2, [*prompt(9), *tokens, 3], 2))[0]


@pytest.mark.parametrize("out", [1, 2])
def test_an_abort_gives_everything_back_with_the_steps_that_are_out(out: int) -> None:
    made = simulated(depth=2)
    made.scheduler.add(request(1, prompt(9), 50))
    made.step()
    for _ in range(out - 1):
        send(made)
    assert len(made.out) == out
    assert made.scheduler.abort(1)
    assert made.scheduler.schedule() is None
    for left in range(out, 0, -1):
        assert made.scheduler.stats().free_blocks < 64
        assert len(made.out) == left
        made.land()
    assert made.scheduler.idle
    assert made.scheduler.stats().free_blocks == 64
    assert made.tokens == {}
    assert made.dropped == {1: out}


def test_a_row_that_fails_ends_once_and_its_neighbours_do_not_notice() -> None:
    made = simulated(depth=2)
    asked = [request(number, prompt(9, number), 6) for number in range(3)]
    for each in asked:
        made.scheduler.add(each)
    made.step()
    plan = made.plan()
    assert plan is not None
    made.submit(plan, fail_rows=frozenset({plan.slices[1].row}))
    made.land()
    assert len(send(made).slices) == 3, "planned before the failure was known"
    made.land()
    assert [delta.error for delta in made.deltas[1]] == [None, "injected"]
    assert len(send(made).slices) == 2
    made.drain(12)
    assert made.dropped == {1: 1}
    for each in (asked[0], asked[2]):
        assert (made.tokens[each.id], made.ended[each.id]) == alone(each)


def test_a_failed_plan_takes_what_is_out_of_its_sequences_with_it() -> None:
    made = simulated(depth=2, rows=2)
    for number in range(3):
        made.scheduler.add(request(number, prompt(9, number), 5))
    plan = made.plan()
    assert plan is not None
    made.submit(plan, fails=True)
    send(made)
    made.land()
    assert made.ended == {0: "error", 1: "error"}
    assert made.scheduler.schedule() is None, "no row is free before the second has landed"
    made.land()
    assert made.dropped == {0: 1, 1: 1}
    made.drain(12)
    assert (made.tokens[2], made.ended[2]) == alone(request(2, prompt(9, 2), 5))


def test_only_the_oldest_plan_lands() -> None:
    made = simulated(depth=2)
    made.scheduler.add(request(1, prompt(9), 5))
    first, second = send(made), send(made)
    output = made.worker.collect()
    for wrong in (
        lambda: made.scheduler.apply(second, made.worker.collect()),
        lambda: made.scheduler.fail_plan(second, "no"),
    ):
        with pytest.raises(ValueError, match="before step 0"):
            wrong()
    made.take(made.scheduler.apply(first, output))


def test_a_grammar_is_never_planned_ahead_and_loses_every_other_step_at_worst() -> None:
    made = simulated(depth=2, prefill=8)
    asked = [request(0, prompt(9), 30), request(1, prompt(19, 1), 8, grammar=True)]
    for each in asked:
        made.scheduler.add(each)
    rows: list[set[int]] = []
    while 1 not in made.ended:  # the harness looks at the flights of every slice
        plan = made.step()
        rows.append({piece.row for piece in plan.slices} if plan is not None else set())
    first = next(index for index, each in enumerate(rows) if 1 in each)
    assert all(0 in each for each in rows), "the others run in every step"
    assert [1 in each for each in rows[first:][:20:2]] == [True] * 10
    made.drain(60)
    for each in asked:
        assert (made.tokens[each.id], made.ended[each.id]) == alone(each)
    made = simulated(depth=2)
    in_order(made, [request(n, prompt(9, n), 8, grammar=True) for n in range(3)], 2 * 8)


@pytest.mark.parametrize("blocks", range(8, 13))
def test_the_youngest_is_preempted_not_one_that_happens_to_have_landed(blocks: int) -> None:
    made = simulated(blocks=blocks, rows=4, caching=False, depth=2)
    asked = [request(n, prompt(5 + n, n), 16, grammar=n == 1) for n in range(4)]
    for each in asked:
        made.scheduler.add(each)
    while not made.scheduler.idle:
        before = [sequence.id for sequence in made.scheduler._running]
        plan = made.plan()
        after = {sequence.id for sequence in made.scheduler._running}
        kept = [number for number in before if number in after]
        assert before[: len(kept)] == kept
        if plan is not None:
            made.submit(plan)
        made.advance(plan is not None)
    assert made.scheduler.stats().preemptions > 0
    for each in asked:
        assert (made.tokens[each.id], made.ended[each.id]) == alone(each)


def test_nobody_younger_goes_ahead_of_one_that_waits_for_blocks() -> None:
    made = simulated(prefill=8, caching=False, depth=2)
    asked = [request(1, prompt(24), 4), request(2, [5], 9), request(3, [6], 9)]
    made.scheduler.add(asked[0])
    send(made)
    made.scheduler.add(asked[1])
    made.scheduler.add(asked[2])
    assert shapes(send(made)) == [(0, 1, True), (0, 1, True), (8, 8, False)]
    made.land()
    other = Allocation(made.scheduler._pool)
    other.grow(made.scheduler.stats().free_blocks)
    assert made.scheduler.schedule() is None, "the younger ones have room in their blocks"
    deltas = made.scheduler.apply(made.out.popleft(), made.worker.collect())
    plan = made.scheduler.schedule()
    assert plan is not None
    assert shapes(plan) == [(16, 8, True)]
    assert made.scheduler.stats().preemptions == 2
    other.release()  # the books balance again
    made.take(deltas)
    made.submit(plan)
    made.drain(40)
    for each in asked:
        assert (made.tokens[each.id], made.ended[each.id]) == alone(each)


def test_thirty_two_mixed_requests_give_the_same_tokens_at_every_depth() -> None:
    results = []
    for depth in (1, 2, 3):
        dice = random.Random(5)
        asked = [
            request(
                n,
                prompt(dice.randint(1, 40), dice.randint(0, 3)),
                dice.randint(1, 40),
                stop=(dice.randrange(50),),
                grammar=n % 5 == 0,
            )
            for n in range(32)
        ]
        made = simulated(blocks=24, rows=16, prefill=20, depth=depth)
        in_order(made, asked, 4000)
        stats = made.scheduler.stats()
        assert stats.preemptions > 0
        assert stats.prefix_hit_tokens > 0
        assert stats.free_blocks == 24
        assert stats.generated_tokens == sum(len(tokens) for tokens in made.tokens.values())
        assert bool(made.dropped) == (depth > 1)
        results.append((made.tokens, made.ended))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        ("planned", "has planned"),
        ("grammar", "its grammar needs"),
        ("computed", "twice"),
        ("row", "row"),
        ("left", "do not run"),
        ("stayed", "still holds row"),
        ("beyond", "last token"),
    ],
)
def test_check_integrity_notices(damage: str, names: str) -> None:
    made = simulated(depth=2)
    made.scheduler.add(request(1, prompt(5), 3))
    send(made)
    send(made)
    made.scheduler.check_integrity()
    sequence = made.scheduler._running[0]
    if damage == "planned":
        sequence.planned -= 1
    elif damage == "grammar":
        sequence.request = request(1, prompt(5), 3, grammar=True)
    elif damage == "computed":
        sequence.computed += 1
    elif damage == "row":
        made.scheduler._flights._out[0].sequences[0].row = 3
    elif damage == "left":
        made.scheduler._running.clear()
        made.scheduler._sequences.clear()
        made.scheduler._free_rows.append(0)
    elif damage == "stayed":
        made.land()
        made.land()
        sequence.ended = True
    else:
        sequence.computable = 5
    with pytest.raises(InvariantError, match=names):
        made.scheduler.check_integrity()


def test_lookahead_is_not_negative() -> None:
    with pytest.raises(ValueError, match="lookahead"):
        Scheduler(SchedulerLimits(1, 1, 1, 0.0), BlockPool(1, 1), lookahead=-1)
