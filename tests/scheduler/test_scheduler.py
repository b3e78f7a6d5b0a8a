"""What one step contains, and what comes out."""

import pytest

from support.simulated_worker import alone, prompt, request, simulated
from tiercel.cache.pool import InvariantError
from tiercel.scheduler.limits import NeverFits, SchedulerLimits
from tiercel.wire.step import StepOutput


def test_one_request_runs_as_prefill_then_decodes() -> None:
    made = simulated()
    asked = request(1, prompt(10), 3)
    made.scheduler.add(asked)
    shapes = []
    while (plan := made.step()) is not None:
        shapes.append([(piece.start, piece.count, piece.sample) for piece in plan.slices])
    assert shapes == [[(0, 10, True)], [(10, 1, True)], [(11, 1, True)]]
    assert (made.tokens[1], made.ended[1]) == alone(asked)
    assert made.scheduler.idle
    assert made.scheduler.stats().free_blocks == 64


def test_long_prompts_come_in_chunks_that_end_at_block_boundaries() -> None:
    made = simulated(prefill=10)
    made.scheduler.add(request(1, prompt(27), 1))
    slices = []
    while (plan := made.step()) is not None:
        slices += [(piece.start, piece.count, piece.sample) for piece in plan.slices]
    assert slices == [(0, 8, False), (8, 8, False), (16, 8, False), (24, 3, True)]


def test_the_prefill_budget_is_shared_in_order_and_decodes_are_free() -> None:
    made = simulated(prefill=16)
    made.scheduler.add(request(1, prompt(3), 20))
    made.step()
    made.scheduler.add(request(2, prompt(12, 1), 20))
    made.scheduler.add(request(3, prompt(12, 2), 20))
    plan = made.step()
    assert plan is not None
    assert [piece.count for piece in plan.slices] == [1, 12, 4]
    shape = made.scheduler.describe(plan)
    assert (shape.prefill_tokens, shape.decode_rows, shape.new_rows) == (16, 1, 2)
    assert shape.mean_context == pytest.approx((12 * 6 + 4 * 2) / 16)
    plan = made.step()
    assert plan is not None
    assert [piece.count for piece in plan.slices] == [1, 1, 8]


def test_every_decoding_row_is_in_every_step() -> None:
    made = simulated(rows=6, blocks=200, prefill=8)
    for number in range(12):
        made.scheduler.add(request(number, prompt(5 + number, number), 9))
    while not made.scheduler.idle:
        due = {s.row for s in made.scheduler._running if len(s.tokens) - s.computed == 1}
        plan = made.step()
        assert plan is not None
        assert due <= {piece.row for piece in plan.slices}


def test_no_more_sequences_run_than_there_are_rows() -> None:
    made = simulated(rows=2)
    for number in range(5):
        made.scheduler.add(request(number, prompt(3, number), 4))
    while not made.scheduler.idle:
        made.step()
        assert made.scheduler.stats().running <= 2
    assert made.first_scheduled == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("tokens", "new", "numbers"),
    [(500, 13, ("500", "512")), (250, 8, ("65", "64"))],
    ids=["context", "pool"],
)
def test_what_never_fits_is_refused_with_both_numbers(
    tokens: int, new: int, numbers: tuple[str, str]
) -> None:
    made = simulated()
    with pytest.raises(NeverFits) as caught:
        made.scheduler.add(request(1, prompt(tokens), new))
    assert all(number in str(caught.value) for number in numbers)
    assert made.scheduler.idle


def test_the_largest_request_that_fits_runs_alone() -> None:
    made = simulated(blocks=4)
    asked = request(1, prompt(10), 7)  # 16 computed tokens: four blocks
    made.scheduler.add(asked)
    made.scheduler.add(request(2, prompt(9, 3), 8))
    made.drain(60)
    assert (made.tokens[1], made.ended[1]) == alone(asked)
    with pytest.raises(NeverFits):
        made.scheduler.add(request(3, prompt(10), 8))


def test_empty_and_duplicate_requests_are_our_own_mistakes() -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(3)))
    for wrong in (request(1, prompt(3)), request(2, []), request(2, prompt(3), 0)):
        with pytest.raises(ValueError, match="request"):
            made.scheduler.add(wrong)


def test_length_comes_before_a_stop_token() -> None:
    tokens, _ = alone(request(1, prompt(5), 3))
    assert len(set(tokens)) == 3
    made = simulated()
    made.scheduler.add(request(1, prompt(5), 3, stop=(tokens[2],)))
    made.scheduler.add(request(2, prompt(5), 4, stop=(tokens[2],)))
    made.scheduler.add(request(3, prompt(5), 1, stop=(tokens[0],)))
    made.drain(20)
    assert made.ended == {1: "length", 2: "eos_token", 3: "length"}
    assert made.tokens[2] == tokens


def test_the_first_delta_carries_queue_time_and_the_later_ones_do_not() -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(5), 2))
    made.drain(5)
    first, second = made.deltas[1]
    assert (first.queue_s, second.queue_s) == (10.0, None)
    assert (first.prompt_logprobs, first.cached_tokens) == (None, 0)


def test_abort_while_queued_and_while_running_frees_at_once() -> None:
    made = simulated(rows=1)
    for number in (1, 2, 3):
        made.scheduler.add(request(number, prompt(9, number), 50))
    made.step()
    made.step()
    assert made.scheduler.abort(2)
    assert not made.scheduler.abort(2)
    assert not made.scheduler.abort(99)
    assert made.scheduler.abort(1)
    stats = made.scheduler.stats()
    assert (stats.running, stats.waiting, stats.free_blocks, stats.aborted) == (0, 1, 64, 2)
    made.step()
    assert made.first_scheduled == [1, 3]


def test_abort_under_a_step_frees_after_it_and_makes_no_delta() -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(9), 50))
    plan = made.plan()
    assert plan is not None
    assert made.scheduler.abort(1)
    assert not made.scheduler.abort(1)
    assert (made.scheduler.stats().free_blocks, made.scheduler.stats().running) == (61, 1)
    assert made.scheduler.apply(plan, made.worker.run(plan)) == []
    assert made.scheduler.idle
    assert made.scheduler.stats().free_blocks == 64


def test_a_failed_row_ends_alone() -> None:
    made = simulated()
    asked = [request(number, prompt(9, number), 5) for number in range(3)]
    for each in asked:
        made.scheduler.add(each)
    made.step()
    plan = made.plan()
    assert plan is not None
    failing = plan.slices[1].row
    made.take(made.scheduler.apply(plan, made.worker.run(plan, fail_rows=frozenset({failing}))))
    made.drain(10)
    delta = made.deltas[1][-1]
    assert (delta.error, delta.error_type, delta.tokens) == ("injected", "generation", [])
    for each in (asked[0], asked[2]):
        assert (made.tokens[each.id], made.ended[each.id]) == alone(each)


def test_a_failed_plan_ends_its_sequences_and_no_others() -> None:
    made = simulated(rows=2)
    for number in range(3):
        made.scheduler.add(request(number, prompt(9, number), 5))
    plan = made.plan()
    assert plan is not None
    made.scheduler.abort(1)
    made.take(made.scheduler.fail_plan(plan, "the device is gone"))
    assert made.ended == {0: "error"}
    assert made.scheduler.stats().waiting == 1
    made.drain(10)
    assert made.ended == {0: "error", 2: "length"}


def test_a_worker_that_returns_no_token_fails_the_sequence() -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(3), 5))
    plan = made.plan()
    assert plan is not None
    made.take(made.scheduler.apply(plan, StepOutput(plan.step, [], [], [], 0.0, 0.0)))
    assert made.ended == {1: "error"}


def test_a_plan_is_applied_once_and_with_its_own_output() -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(3), 5))
    plan = made.plan()
    assert plan is not None
    output = made.worker.run(plan)
    with pytest.raises(ValueError, match="step 7"):
        made.scheduler.apply(plan, StepOutput(7, [], [], [], 0.0, 0.0))
    made.scheduler.apply(plan, output)
    with pytest.raises(ValueError, match="not out"):
        made.scheduler.apply(plan, output)


def test_a_second_plan_leaves_the_sequences_of_the_first_alone() -> None:
    made = simulated(prefill=8)
    made.scheduler.add(request(1, prompt(5), 5))
    first = made.plan()
    assert first is not None
    assert made.scheduler.schedule() is None
    made.scheduler.add(request(2, prompt(5, 1), 5))
    second = made.plan()
    assert second is not None
    assert not {p.row for p in first.slices} & {p.row for p in second.slices}
    outputs = [made.worker.run(first), made.worker.run(second)]
    made.take(made.scheduler.apply(second, outputs[1]))
    made.take(made.scheduler.apply(first, outputs[0]))
    made.drain(10)
    assert made.ended == {1: "length", 2: "length"}


@pytest.mark.parametrize("damage", ["row", "block", "sequence"])
def test_check_integrity_notices(damage: str) -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(5), 5))
    made.step()
    made.scheduler.check_integrity()
    if damage == "row":
        made.scheduler._free_rows.pop()
    elif damage == "block":
        made.scheduler._running[0].allocation.blocks.pop()
    else:
        made.scheduler._sequences.clear()
    with pytest.raises(InvariantError):
        made.scheduler.check_integrity()


@pytest.mark.parametrize("field", range(3))
def test_limits_must_be_positive(field: int) -> None:
    values = [1, 1, 1]
    values[field] = 0
    with pytest.raises(ValueError, match="at least 1"):
        SchedulerLimits(values[0], values[1], values[2], 0.0)
