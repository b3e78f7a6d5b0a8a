"""Who gets blocks: shared prefixes, admission and preemption."""

import random

from support.simulated_worker import alone, prompt, request, simulated
from tiercel.cache.pool import Allocation, BlockPool
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.request import GenerationRequest, SamplingParams
from tiercel.wire.step import SampledToken, StepOutput


def test_a_repeated_prompt_is_found_and_at_least_one_token_runs() -> None:
    made = simulated()
    for number in (1, 2):
        made.scheduler.add(request(number, prompt(16), 2))
        made.drain(5)
    plan = next(plan for plan in reversed(made.plans) if plan.starts)
    assert [(piece.start, piece.count) for piece in plan.slices] == [(15, 1)]
    assert made.tokens[1] == made.tokens[2]
    assert made.deltas[2][0].cached_tokens == 15
    stats = made.scheduler.stats()
    assert (stats.prefix_hit_tokens, stats.prefix_query_tokens) == (15, 32)


def test_a_running_request_is_a_source_of_hits_including_its_output() -> None:
    made = simulated()
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
    made = simulated(prefill=8)
    made.scheduler.add(request(1, prompt(32), 2))
    made.scheduler.add(request(2, prompt(32), 2))
    made.drain(12)
    computed = sum(piece.count for plan in made.plans for piece in plan.slices)
    assert computed <= 32 + 2 + 4 + 2
    assert made.tokens[1] == made.tokens[2]


def test_a_twin_in_the_middle_of_its_prefill_goes_on_with_the_others_blocks() -> None:
    made = simulated(prefill=100)
    made.scheduler.add(request(1, prompt(80), 2))
    made.scheduler.add(request(2, prompt(80), 2))
    made.drain(12)
    assert made.tokens[1] == made.tokens[2]
    second = [(p.start, p.count) for plan in made.plans for p in plan.slices if p.row == 1]
    assert second[:2] == [(0, 20), (79, 1)]
    assert made.deltas[2][0].cached_tokens == 59


def test_found_blocks_that_are_free_count_as_needed_too() -> None:
    made = simulated(blocks=16, prefill=32)
    made.scheduler.add(request(1, prompt(24), 1))
    made.scheduler.add(request(2, prompt(24), 1))
    made.step()
    assert (made.ended, made.scheduler.stats().running) == ({1: "length"}, 1)
    other = Allocation(made.scheduler._pool)
    other.grow(11)  # leaves 3 free: one of them is the second's next block, and it needs 3 more
    assert made.scheduler.schedule() is None
    other.release()
    made.drain(3)
    assert made.tokens[1] == made.tokens[2]


def test_salts_never_share() -> None:
    made = simulated()
    for number, salt in ((1, b"a"), (2, b"b"), (3, b"a")):
        made.scheduler.add(request(number, prompt(20), 2, salt=salt))
        made.drain(5)
    assert [made.deltas[number][0].cached_tokens for number in (1, 2, 3)] == [0, 0, 19]


def test_without_prefix_caching_nothing_is_hashed_or_found() -> None:
    made = simulated(caching=False)
    for number in (1, 2):
        made.scheduler.add(request(number, prompt(20), 2))
        made.drain(5)
    stats = made.scheduler.stats()
    assert (stats.prefix_hit_tokens, stats.prefix_query_tokens, stats.cached_blocks) == (0, 0, 0)


def test_prompt_logprobs_cover_the_whole_prompt_over_chunks_and_ignore_the_cache() -> None:
    made = simulated(prefill=8)
    made.scheduler.add(request(1, prompt(21), 2))
    made.drain(8)
    made.scheduler.add(request(2, prompt(21), 2, prompt_logprobs=True))
    made.drain(8)
    first, second = made.deltas[2]
    assert first.prompt_logprobs == [None] + [-float(position) for position in range(1, 21)]
    assert (first.cached_tokens, second.prompt_logprobs) == (0, None)


def test_the_youngest_is_preempted_and_its_tokens_do_not_change() -> None:
    made = simulated(blocks=9, rows=4, caching=False)
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
    made = simulated(blocks=9, rows=4)
    for number in range(4):
        made.scheduler.add(request(number, prompt(6, number), 16, prompt_logprobs=True))
    made.drain(200)
    assert made.scheduler.stats().preemptions > 0
    for deltas in made.deltas.values():
        delivered = [delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs]
        assert delivered == [[None, -1.0, -2.0, -3.0, -4.0, -5.0]]


def test_a_sequence_is_not_admitted_into_the_blocks_that_running_ones_need_next() -> None:
    made = simulated(blocks=11, prefill=16)
    made.scheduler.add(request(1, prompt(24), 4))
    made.step()
    made.scheduler.add(request(2, prompt(20, 9), 4))  # 5 blocks; 5 will be free, 2 must stay so
    for _ in range(3):
        made.step()
        assert made.scheduler.stats().running == 1
    made.drain(30)
    assert made.scheduler.stats().preemptions == 0


def test_logprobs_of_a_prompt_that_is_preempted_half_way_are_not_doubled() -> None:
    made = simulated(blocks=11, prefill=2)
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
    made = simulated(blocks=9, rows=3, caching=False)
    for number in range(6):
        made.scheduler.add(request(number, prompt(6, number), 16))
    made.drain(200)  # the harness looks at every new start
    resumed = [start for plan in made.plans for start in plan.starts if len(start.token_ids) > 6]
    assert resumed
    assert made.first_scheduled == list(range(6))


def test_hits_on_its_own_earlier_work_are_not_the_caches_answer() -> None:
    made = simulated(blocks=11, prefill=2)
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
    made = simulated(blocks=6, rows=3, caching=False)
    made.scheduler.add(request(1, prompt(8), 16))
    made.step()
    first = made.plan()
    made.scheduler.add(request(2, prompt(4, 1), 8))
    slow = made.plan()  # with the younger one alone; still out while the older one goes on
    assert first is not None
    assert slow is not None
    assert len(first.slices) == len(slow.slices) == 1
    made.take(made.scheduler.apply(first, made.worker.run(first)))
    younger = made.scheduler._running[1]
    while (plan := made.step()) is not None:
        assert len(plan.slices) == 1
    assert made.scheduler.stats().free_blocks == 0
    assert (younger.row, made.scheduler.stats().preemptions) == (1, 0)
    made.take(made.scheduler.apply(slow, made.worker.run(slow)))
    made.drain(40)
    assert made.scheduler.stats().preemptions == 1
    assert made.ended == {1: "length", 2: "length"}


def test_thirty_two_mixed_requests_in_a_tiny_pool_equal_their_solo_runs() -> None:
    made = simulated(blocks=24, rows=16, prefill=20)
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


def test_measuring_the_decode_step_never_stops_everything() -> None:
    """The probe step hands out no prefill; where no decoding row finds a block, prefill goes on.

    A long prompt has a few tokens to go, the short one behind it needs a block, and none is free,
    just when a probe is due: forced here, since thousands of random runs never met it.
    """
    pool = BlockPool(69, 16)
    scheduler = Scheduler(SchedulerLimits(8, 69 * 16, 64, 4.0), pool)
    scheduler.add(GenerationRequest(1, [7 + i % 50 for i in range(1051)], 2, SamplingParams(), []))
    finished = set()
    for step in range(2000):
        if step == 0:
            scheduler.add(GenerationRequest(2, [3], 900, SamplingParams(), []))
        running = scheduler._running
        if len(running) == 2 and pool.free_blocks == 0:
            older, younger = running
            behind = len(older.tokens) - older.computed > 1
            if behind and younger.computed == len(younger.allocation.blocks) * 16:
                scheduler._budget._since_decode = 64  # a probe is due
        plan = scheduler.schedule()
        if plan is None:
            break
        drawn = [SampledToken(part.row, 9 + step % 7, -1.0) for part in plan.slices if part.sample]
        seconds = 0.005 + 0.003 * sum(part.count for part in plan.slices if part.count > 1)
        deltas = scheduler.apply(plan, StepOutput(plan.step, drawn, [], [], seconds, seconds))
        finished |= {delta.request_id for delta in deltas if delta.finish_reason}
    assert finished == {1, 2}
