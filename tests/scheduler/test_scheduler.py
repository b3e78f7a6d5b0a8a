"""What one step contains, who gets blocks, and what comes out."""

import random

import pytest

from support.simulated_worker import Harness, SimulatedWorker, alone, request
from tiercel.cache.pool import BlockPool, InvariantError
from tiercel.scheduler.limits import NeverFits, SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.step import StepOutput


def harness(
    *,
    blocks: int = 64,
    size: int = 4,
    rows: int = 8,
    prefill: int = 64,
    total: int = 512,
    stretch: float = 0.0,
    caching: bool = True,
) -> Harness:
    limits = SchedulerLimits(rows, total, prefill, stretch, caching)
    scheduler = Scheduler(limits, BlockPool(blocks, size), clock=lambda: 10.0)
    return Harness(scheduler, SimulatedWorker(blocks, size))


def prompt(count: int, first: int = 0) -> list[int]:
    return [(first + index * 7) % 50 for index in range(count)]


def test_one_request_runs_as_prefill_then_decodes() -> None:
    made = harness()
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
    made = harness(prefill=10)
    made.scheduler.add(request(1, prompt(27), 1))
    slices = []
    while (plan := made.step()) is not None:
        slices += [(piece.start, piece.count, piece.sample) for piece in plan.slices]
    assert slices == [(0, 8, False), (8, 8, False), (16, 8, False), (24, 3, True)]


def test_the_prefill_budget_is_shared_in_order_and_decodes_are_free() -> None:
    made = harness(prefill=16)
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
    made = harness(rows=6, blocks=200, prefill=8)
    for number in range(12):
        made.scheduler.add(request(number, prompt(5 + number, number), 9))
    while not made.scheduler.idle:
        due = {s.row for s in made.scheduler._running if len(s.tokens) - s.computed == 1}
        plan = made.step()
        assert plan is not None
        assert due <= {piece.row for piece in plan.slices}


def test_no_more_sequences_run_than_there_are_rows() -> None:
    made = harness(rows=2)
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
    made = harness()
    with pytest.raises(NeverFits) as caught:
        made.scheduler.add(request(1, prompt(tokens), new))
    assert all(number in str(caught.value) for number in numbers)
    assert made.scheduler.idle


def test_the_largest_request_that_fits_runs_alone() -> None:
    made = harness(blocks=4)
    asked = request(1, prompt(10), 7)  # 16 computed tokens: four blocks
    made.scheduler.add(asked)
    made.scheduler.add(request(2, prompt(9, 3), 8))
    made.drain(60)
    assert (made.tokens[1], made.ended[1]) == alone(asked)
    with pytest.raises(NeverFits):
        made.scheduler.add(request(3, prompt(10), 8))


def test_empty_and_duplicate_requests_are_our_own_mistakes() -> None:
    made = harness()
    made.scheduler.add(request(1, prompt(3)))
    for wrong in (request(1, prompt(3)), request(2, []), request(2, prompt(3), 0)):
        with pytest.raises(ValueError, match="request"):
            made.scheduler.add(wrong)


def test_length_comes_before_a_stop_token() -> None:
    tokens, _ = alone(request(1, prompt(5), 3))
    assert len(set(tokens)) == 3
    made = harness()
    made.scheduler.add(request(1, prompt(5), 3, stop=(tokens[2],)))
    made.scheduler.add(request(2, prompt(5), 4, stop=(tokens[2],)))
    made.scheduler.add(request(3, prompt(5), 1, stop=(tokens[0],)))
    made.drain(20)
    assert made.ended == {1: "length", 2: "eos_token", 3: "length"}
    assert made.tokens[2] == tokens


def test_the_first_delta_carries_queue_time_and_the_later_ones_do_not() -> None:
    made = harness()
    made.scheduler.add(request(1, prompt(5), 2))
    made.drain(5)
    first, second = made.deltas[1]
    assert (first.queue_s, second.queue_s) == (10.0, None)
    assert (first.prompt_logprobs, first.cached_tokens) == (None, 0)


def test_a_repeated_prompt_is_found_and_at_least_one_token_runs() -> None:
    made = harness()
    for number in (1, 2):
        made.scheduler.add(request(number, prompt(16), 2))
        made.drain(5)
    plan = next(plan for plan in reversed(made.plans) if plan.starts)
    assert [(piece.start, piece.count) for piece in plan.slices] == [(12, 4)]
    assert made.tokens[1] == made.tokens[2]
    assert made.deltas[2][0].cached_tokens == 12
    stats = made.scheduler.stats()
    assert (stats.prefix_hit_tokens, stats.prefix_query_tokens) == (12, 32)


def test_a_running_request_is_a_source_of_hits_including_its_output() -> None:
    made = harness()
    made.scheduler.add(request(1, prompt(6), 20))
    for _ in range(8):
        made.step()
    known = prompt(6) + made.tokens[1]
    made.scheduler.add(request(2, [*known, 3], 2))
    made.step()
    assert made.plans[-1].slices[-1].start == 12
    made.drain(30)
    assert made.deltas[2][0].cached_tokens == 12


def test_twins_that_arrive_together_share_what_the_first_has_computed() -> None:
    made = harness(prefill=8)
    made.scheduler.add(request(1, prompt(32), 2))
    made.scheduler.add(request(2, prompt(32), 2))
    made.drain(12)
    computed = sum(piece.count for plan in made.plans for piece in plan.slices)
    assert computed <= 32 + 2 + 4 + 2
    assert made.tokens[1] == made.tokens[2]


def test_a_twin_in_the_middle_of_its_prefill_goes_on_with_the_others_blocks() -> None:
    made = harness(prefill=100)
    made.scheduler.add(request(1, prompt(80), 2))
    made.scheduler.add(request(2, prompt(80), 2))
    made.drain(12)
    assert made.tokens[1] == made.tokens[2]
    second = [(p.start, p.count) for plan in made.plans for p in plan.slices if p.row == 1]
    assert second[:2] == [(0, 20), (76, 4)]
    assert made.deltas[2][0].cached_tokens == 56


def test_salts_never_share() -> None:
    made = harness()
    for number, salt in ((1, b"a"), (2, b"b"), (3, b"a")):
        made.scheduler.add(request(number, prompt(20), 2, salt=salt))
        made.drain(5)
    assert [made.deltas[number][0].cached_tokens for number in (1, 2, 3)] == [0, 0, 16]


def test_without_prefix_caching_nothing_is_hashed_or_found() -> None:
    made = harness(caching=False)
    for number in (1, 2):
        made.scheduler.add(request(number, prompt(20), 2))
        made.drain(5)
    stats = made.scheduler.stats()
    assert (stats.prefix_hit_tokens, stats.prefix_query_tokens, stats.cached_blocks) == (0, 0, 0)


def test_prompt_logprobs_cover_the_whole_prompt_over_chunks_and_ignore_the_cache() -> None:
    made = harness(prefill=8)
    made.scheduler.add(request(1, prompt(21), 2))
    made.drain(8)
    made.scheduler.add(request(2, prompt(21), 2, prompt_logprobs=True))
    made.drain(8)
    first, second = made.deltas[2]
    assert first.prompt_logprobs == [None] + [-float(position) for position in range(1, 21)]
    assert (first.cached_tokens, second.prompt_logprobs) == (0, None)


def test_the_youngest_is_preempted_and_its_tokens_do_not_change() -> None:
    made = harness(blocks=9, rows=4, caching=False)
    asked = [request(number, prompt(6, number), 16) for number in range(4)]
    for each in asked:
        made.scheduler.add(each)
    made.drain(200)
    assert made.scheduler.stats().preemptions > 0
    for each in asked:
        assert (made.tokens[each.id], made.ended[each.id]) == alone(each)
    assert made.first_scheduled == [0, 1, 2, 3]
    resumed = [start for plan in made.plans for start in plan.starts if len(start.token_ids) > 6]
    assert resumed
    assert all(start.prompt_tokens == 6 for start in resumed)
    assert next(iter(made.ended)) == 0, "the oldest is never preempted"


def test_prompt_logprobs_are_delivered_once_whatever_is_preempted() -> None:
    made = harness(blocks=9, rows=4)
    for number in range(4):
        made.scheduler.add(request(number, prompt(6, number), 16, prompt_logprobs=True))
    made.drain(200)
    assert made.scheduler.stats().preemptions > 0
    for deltas in made.deltas.values():
        delivered = [delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs]
        assert delivered == [[None, -1.0, -2.0, -3.0, -4.0, -5.0]]


def test_a_sequence_is_not_admitted_into_the_blocks_that_running_ones_need_next() -> None:
    made = harness(blocks=11, prefill=16)
    made.scheduler.add(request(1, prompt(24), 4))
    made.step()
    made.scheduler.add(request(2, prompt(20, 9), 4))  # 5 blocks; 5 will be free, 2 must stay so
    for _ in range(3):
        made.step()
        assert made.scheduler.stats().running == 1
    made.drain(30)
    assert made.scheduler.stats().preemptions == 0


def test_logprobs_of_a_prompt_that_is_preempted_half_way_are_not_doubled() -> None:
    made = harness(blocks=11, prefill=2)
    made.scheduler.add(request(1, prompt(4), 30))
    made.step()
    made.step()
    made.scheduler.add(request(2, prompt(28, 9), 2, prompt_logprobs=True))
    made.drain(100)
    assert made.scheduler.stats().preemptions == 1
    restart = [start for plan in made.plans for start in plan.starts][-1]
    assert len(restart.token_ids) == 28
    assert restart.prompt_logprobs
    first = made.deltas[2][0]
    assert first.prompt_logprobs == [None] + [-float(position) for position in range(1, 28)]


def test_a_preempted_sequence_resumes_before_what_has_not_run_yet() -> None:
    made = harness(blocks=9, rows=3, caching=False)
    for number in range(6):
        made.scheduler.add(request(number, prompt(6, number), 16))
    made.drain(200)  # the harness looks at every new start
    resumed = [start for plan in made.plans for start in plan.starts if len(start.token_ids) > 6]
    assert resumed
    assert made.first_scheduled == list(range(6))


def test_hits_on_its_own_earlier_work_are_not_the_caches_answer() -> None:
    made = harness(blocks=11, prefill=2)
    made.scheduler.add(request(1, prompt(4), 30))
    made.step()
    made.step()
    made.scheduler.add(request(2, prompt(28, 9), 2))
    made.drain(100)
    assert made.scheduler.stats().preemptions == 1
    again = next(plan for plan in reversed(made.plans) if plan.starts)
    assert again.slices[-1].start > 0
    assert made.deltas[2][0].cached_tokens == 0
    assert made.scheduler.stats().prefix_hit_tokens == 0


def test_a_sequence_in_a_step_that_is_out_is_never_preempted() -> None:
    made = harness(blocks=6, rows=3, caching=False)
    made.scheduler.add(request(1, prompt(8), 16))
    made.step()
    made.scheduler.add(request(2, prompt(4, 1), 8))
    first = made.plan()
    assert first is not None
    assert len(first.slices) == 2
    made.take(made.scheduler.apply(first, made.worker.run(first)))
    younger = made.scheduler._running[1]
    younger.in_flight = True  # as if a slow step with it were still out
    while (plan := made.step()) is not None:
        assert len(plan.slices) == 1
    assert made.scheduler.stats().free_blocks == 0
    assert (younger.row, made.scheduler.stats().preemptions) == (1, 0)
    younger.in_flight = False
    made.drain(40)
    assert made.scheduler.stats().preemptions == 1
    assert made.ended == {1: "length", 2: "length"}


def test_abort_while_queued_and_while_running_frees_at_once() -> None:
    made = harness(rows=1)
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
    made = harness()
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
    made = harness()
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
    made = harness(rows=2)
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
    made = harness()
    made.scheduler.add(request(1, prompt(3), 5))
    plan = made.plan()
    assert plan is not None
    made.take(made.scheduler.apply(plan, StepOutput(plan.step, [], [], [], 0.0, 0.0)))
    assert made.ended == {1: "error"}


def test_a_plan_is_applied_once_and_with_its_own_output() -> None:
    made = harness()
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
    made = harness(prefill=8)
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
    made = harness()
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


def test_thirty_two_mixed_requests_in_a_tiny_pool_equal_their_solo_runs() -> None:
    made = harness(blocks=24, rows=16, prefill=20)
    dice = random.Random(5)
    asked = [
        request(n, prompt(dice.randint(1, 40), dice.randint(0, 3)), dice.randint(1, 40))
        for n in range(32)
    ]
    for each in asked:
        made.scheduler.add(each)
    made.drain(2000)
    stats = made.scheduler.stats()
    assert stats.preemptions > 0
    assert stats.prefix_hit_tokens > 0
    for each in asked:
        assert (made.tokens[each.id], made.ended[each.id]) == alone(each)
    assert stats.generated_tokens == sum(len(tokens) for tokens in made.tokens.values())
