"""Parts of blocks that are copied: what is computed of a prompt that came before."""

import pytest

from support.simulated_worker import Harness, alone, prompt, request, simulated
from tiercel.cache.pool import Allocation
from tiercel.wire.request import GenerationRequest

OTHER = 49  # no prompt here has it


def arrives(made: Harness, asked: GenerationRequest) -> tuple[int, int]:
    """(start, count) of the first slice of a request that is added now and planned at once."""
    made.scheduler.add(asked)
    plan = made.step()
    assert plan is not None
    row = plan.starts[-1].row
    return next((each.start, each.count) for each in plan.slices if each.row == row)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 14, 16, 17])
@pytest.mark.parametrize("ended", [True, False])
def test_a_repeated_prompt_computes_its_last_token_only(length: int, ended: bool) -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(length), 3))
    made.drain(9) if ended else made.step()
    assert arrives(made, request(2, prompt(length), 3)) == (length - 1, 1)
    made.drain(9)
    assert made.tokens[1] == made.tokens[2] == alone(request(1, prompt(length), 3))[0]
    assert made.deltas[2][0].cached_tokens == length - 1
    assert made.scheduler.stats().prefix_hit_tokens == length - 1


def test_any_number_of_users_at_the_same_time_copy_the_same_block() -> None:
    made = simulated()
    made.scheduler.add(request(0, prompt(16), 1))
    made.drain(3)
    for number in range(1, 7):
        made.scheduler.add(request(number, prompt(16), 6))
    plan = made.step()
    assert plan is not None
    assert [(each.start, each.count) for each in plan.slices] == [(15, 1)] * 6
    made.drain(9)
    assert all(made.tokens[number] == made.tokens[1] for number in range(1, 7))
    assert arrives(made, request(9, prompt(16), 1)) == (15, 1)


def test_only_equal_tokens_are_copied_and_the_original_stays_whole() -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(23), 6))
    made.drain(9)
    whole = prompt(23) + made.tokens[1]
    assert arrives(made, request(2, [*prompt(10), OTHER, OTHER], 6)) == (10, 2)
    made.drain(9)
    assert arrives(made, request(3, [*whole, 1], 2)) == (28, 2)  # its last token was never computed
    made.drain(9)
    for number, asked in ((2, [*prompt(10), OTHER, OTHER]), (3, [*whole, 1])):
        new = len(made.tokens[number])
        assert made.tokens[number] == alone(request(number, asked, new))[0]


def test_an_aborted_request_leaves_what_it_has_computed() -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(29), 9))
    for _ in range(2):
        made.step()
    made.scheduler.abort(1)
    known = prompt(29) + made.tokens[1]
    assert arrives(made, request(2, [*known, OTHER], 3)) == (30, 2)
    made.drain(9)
    assert made.tokens[2] == alone(request(2, [*known, OTHER], 3))[0]


def test_a_preempted_request_copies_what_it_had_itself() -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(6), 5))
    for _ in range(4):
        made.step()
    made.scheduler._preempt(made.scheduler._running.pop())
    plan = made.step()
    assert plan is not None
    assert [(each.start, each.count) for each in plan.slices] == [(9, 1)]
    made.drain(9)
    assert made.tokens[1] == alone(request(1, prompt(6), 5))[0]
    assert made.scheduler.stats().prefix_hit_tokens == 0  # its own work, not the cache's answer


def test_salts_and_prompt_logprobs_copy_nothing() -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(7), 2, salt=b"a", prompt_logprobs=True))
    made.drain(5)
    assert arrives(made, request(2, prompt(7), 2, salt=b"b")) == (0, 7)
    assert arrives(made, request(3, prompt(7), 2, salt=b"a", prompt_logprobs=True)) == (0, 7)
    assert arrives(made, request(4, prompt(7), 2, salt=b"a")) == (6, 1)


@pytest.mark.parametrize("how", ["plan", "row", "aborted row"])
def test_a_copy_that_may_not_have_happened_is_not_copied_again(how: str) -> None:
    made = simulated()
    made.scheduler.add(request(1, prompt(7), 1))
    made.drain(3)
    made.scheduler.add(request(2, prompt(7), 4))
    plan = made.plan()
    assert plan is not None
    assert plan.slices[0].copy_from >= 0
    pool = made.scheduler._pool
    rest = Allocation(pool)
    rest.grow(pool.free_blocks)  # the original is gone
    rest.release()
    if how == "plan":
        made.take(made.scheduler.fail_plan(plan, "injected"))
    else:
        if how == "aborted row":
            made.scheduler.abort(2)
        output = made.worker.run(plan, fail_rows=frozenset([plan.slices[0].row]))
        made.take(made.scheduler.apply(plan, output))
    assert arrives(made, request(3, prompt(7), 4)) == (4, 3)  # the full block is still there


def test_blocks_remembered_after_one_prefix_are_few_and_the_newest() -> None:
    made = simulated(blocks=200)
    for number in range(40):
        made.scheduler.add(request(number, [*prompt(4), 7, number], 1))
        made.drain(3)
    assert made.scheduler.stats().cached_blocks < 12
    assert arrives(made, request(98, [*prompt(4), 7, 39, 1], 1)) == (6, 1)
    assert arrives(made, request(99, [*prompt(4), 7, 2, 1], 1)) == (5, 2)
