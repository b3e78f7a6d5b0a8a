"""The prefill budget against simulated machines: gaps stay short, prompts are not held up."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.simulated_machine import PROMPT, Machine
from tiercel.scheduler.budget import (
    FLOOR_TOKENS,
    LEAST_STRETCH,
    LONG_STEP_S,
    PROBE_AFTER,
    QUIET_FIRST_TOKENS,
    QUIET_STEP_S,
    CostModel,
    Observation,
    PrefillBudget,
    StepShape,
)


def decode(budget: PrefillBudget, machine: Machine, steps: int, rows: int = 8) -> None:
    for _ in range(steps):
        budget.open(rows)
        budget.observe(StepShape(0, rows, 0), machine.measured(True, 0, 0.0))


def prefill(
    budget: PrefillBudget, machine: Machine, rows: int = 8, tokens: int = PROMPT
) -> list[tuple[int, float]]:
    """One prompt among `rows` streams: (tokens, true seconds) of each of its steps."""
    steps = []
    start = 0
    while start < tokens:
        allowance = budget.open(rows)
        count = allowance.offer(tokens - start, start)
        allowance.spend(count, start)
        context = start + count / 2 if count else 0.0
        budget.observe(
            StepShape(count, rows, 0, context), machine.measured(rows > 0, count, context)
        )
        steps.append((count, machine.seconds(rows > 0, count, context)))
        start += count
    return steps


def test_without_decoding_rows_the_token_limit_counts() -> None:
    budget = PrefillBudget(1000, 4.0, 16)
    assert budget.open(0).offer(900, 0) == QUIET_FIRST_TOKENS, "nobody knows how long it takes"
    budget.observe(StepShape(QUIET_FIRST_TOKENS, 0, 1), QUIET_FIRST_TOKENS * 1e-3)
    allowance = budget.open(0)
    assert allowance.offer(900, 0) == 900
    assert allowance.offer(5000, 0) == 992
    allowance.spend(900, 0)
    assert allowance.offer(5000, 16) == 96
    assert allowance.offer(100, 3) == 100
    allowance.spend(96, 16)
    assert allowance.offer(40, 0) == 0, "not even one block is left"
    assert allowance.offer(1, 77) == 1


def slow_machine() -> Machine:
    """A 7B on two cores: 78 ms per token of a prompt, 700 ms per decode step."""
    return Machine(decode_s=0.7, prompt_s=117.0)


def quiet_seconds(budget: PrefillBudget, machine: Machine, tokens: int) -> list[float]:
    """How long the steps of a prompt alone take."""
    return [seconds for _, seconds in prefill(budget, machine, rows=0, tokens=tokens)]


def test_a_prompt_alone_on_a_slow_machine_takes_steps_of_some_seconds() -> None:
    budget, machine = PrefillBudget(4096, 4.0, 16), slow_machine()
    quiet_seconds(budget, machine, 1500)
    seconds = quiet_seconds(budget, machine, 2000)
    assert max(seconds) <= 1.25 * QUIET_STEP_S
    assert sorted(seconds)[len(seconds) // 2] >= 0.8 * QUIET_STEP_S


def test_short_prompts_do_not_make_a_long_one_seem_cheap() -> None:
    """Reading the weights is most of their time, and of a decode step it is all."""
    budget, machine = PrefillBudget(4096, 4.0, 16), slow_machine()
    decode(budget, machine, 20)
    for _ in range(3):
        budget.observe(StepShape(8, 0, 1, 4.0), machine.decode_s)
    assert max(quiet_seconds(budget, machine, 2000)) <= 1.25 * QUIET_STEP_S


@pytest.mark.parametrize("first_s", [0.5, 8.0, 60.0], ids=["usual", "kernels made", "stuck"])
def test_what_was_slow_once_is_tried_again(first_s: float) -> None:
    """A machine of 10,000 tokens a second whose first steps with prefill were of no such speed."""
    budget, machine = PrefillBudget(4096, 4.0, 16), Machine(decode_s=0.02, prompt_s=0.15)
    for _ in range(3):
        budget.observe(StepShape(12, 8, 0, 6.0), first_s)
    budget.observe(StepShape(256, 0, 1, 128.0), first_s)
    steps = prefill(budget, machine, rows=0, tokens=4000)
    assert len(steps) <= 2
    assert len(prefill(budget, machine, rows=0, tokens=4000)) == 1


@pytest.mark.parametrize("seconds", [0.0, 1e6])
def test_no_clock_stops_a_prompt_alone(seconds: float) -> None:
    budget = PrefillBudget(4096, 4.0, 16)
    budget.observe(StepShape(256, 0, 1, 128.0), seconds)
    assert budget.open(0).offer(4000, 0) == (FLOOR_TOKENS if seconds else 4000)


def test_stretch_zero_switches_the_clock_off() -> None:
    budget = PrefillBudget(1024, 0.0, 16)
    decode(budget, Machine(), 3)
    budget.observe(StepShape(256, 0, 1, 128.0), 60.0)
    assert budget.open(8).offer(5000, 0) == budget.open(0).offer(5000, 0) == 1024


def test_decoding_is_measured_before_prefill_joins_it() -> None:
    budget = PrefillBudget(1024, 4.0, 16)
    allowance = budget.open(8)
    assert (allowance.offer(500, 0), allowance.offer(1, 0)) == (0, 1)
    decode(budget, Machine(), 1)
    assert budget.open(8).offer(500, 0) == 64


def test_decoding_is_measured_again_after_many_mixed_steps() -> None:
    budget, machine = PrefillBudget(4096, 4.0, 16), Machine()
    decode(budget, machine, 5)
    counts = [count for _ in range(4) for count, _ in prefill(budget, machine)]
    assert counts.count(0) == (len(counts) - 1) // (PROBE_AFTER + 1)
    assert counts[PROBE_AFTER] == 0


@pytest.mark.parametrize("alone_first", [False, True], ids=["cold", "after a prompt alone"])
def test_a_long_prompt_among_eight_streams(alone_first: bool) -> None:
    budget, machine = PrefillBudget(4096, 4.0, 16), Machine()
    if alone_first:
        assert len(prefill(budget, machine, rows=0)) == 2
        assert len(prefill(budget, machine, rows=0)) == 1
    decode(budget, machine, 20)
    for _ in range(3):
        steps = prefill(budget, machine)
        assert max(seconds for _, seconds in steps) <= 4.3 * machine.decode_s
        assert sum(seconds for _, seconds in steps) <= 1.35 * machine.prompt_s
        decode(budget, machine, 10)


@pytest.mark.parametrize("seed", range(10))
def test_a_long_prompt_on_a_noisy_machine(seed: int) -> None:
    machine = Machine(noise=0.1, slow=0.01, dice=random.Random(seed))
    budget = PrefillBudget(4096, 4.0, 16)
    decode(budget, machine, 20)
    totals = []
    for _ in range(5):
        steps = prefill(budget, machine)
        assert max(seconds for _, seconds in steps) <= 5.5 * machine.decode_s
        totals.append(sum(seconds for _, seconds in steps) / machine.prompt_s)
        decode(budget, machine, 10)
    assert max(totals) <= 1.42
    assert sum(totals) / len(totals) <= 1.36


@pytest.mark.parametrize(
    ("decode_s", "longest_s"),
    [(0.2, 0.8), (0.5, LONG_STEP_S), (1.2, LEAST_STRETCH * 1.2)],
    ids=["as many decode steps as told", "as many as are short", "two, however long"],
)
def test_a_step_of_a_slow_machine_is_not_long_for_the_sake_of_prefill(
    decode_s: float, longest_s: float
) -> None:
    budget, machine = PrefillBudget(4096, 4.0, 16), Machine(decode_s=decode_s, prompt_s=40.0)
    decode(budget, machine, 20)
    prefill(budget, machine)
    steps = prefill(budget, machine)
    assert max(seconds for _, seconds in steps) <= 1.1 * longest_s
    middle = sorted(seconds for _, seconds in steps)[len(steps) // 2]
    assert middle >= 0.9 * longest_s


@pytest.mark.parametrize("attention", [0.0, 0.8, 1.2])
def test_chunks_follow_the_cost_of_the_context(attention: float) -> None:
    budget, machine = PrefillBudget(4096, 4.0, 16), Machine(attention=attention)
    decode(budget, machine, 20)
    prefill(budget, machine)
    decode(budget, machine, 10)
    steps = prefill(budget, machine)
    assert max(seconds for _, seconds in steps) <= 4.6 * machine.decode_s
    assert sum(seconds for _, seconds in steps) <= 1.38 * machine.prompt_s
    if attention:
        assert steps[1][0] > 1.3 * steps[-2][0]


def test_one_slow_step_changes_nothing_much() -> None:
    budget, machine = PrefillBudget(4096, 4.0, 16), Machine()
    decode(budget, machine, 20)
    prefill(budget, machine)
    decode(budget, machine, 10)
    before = budget.open(8).offer(1000, 400)
    budget.observe(StepShape(0, 8, 0), 50 * machine.decode_s)
    budget.observe(StepShape(56, 8, 0, 400.0), 50 * machine.decode_s)
    assert budget.open(8).offer(1000, 400) == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_a_machine_that_changes_is_followed(factor: float) -> None:
    budget, machine = PrefillBudget(4096, 4.0, 16), Machine()
    decode(budget, machine, 20)
    prefill(budget, machine)
    machine.prompt_s *= factor
    for _ in range(3):
        prefill(budget, machine)
    seconds = [seconds for count, seconds in prefill(budget, machine)[:-1] if count]
    assert all(3.4 * machine.decode_s <= each <= 4.6 * machine.decode_s for each in seconds)


def test_steps_with_decoding_rows_outweigh_those_without() -> None:
    budget, machine = PrefillBudget(4096, 4.0, 16), Machine(attention=0.0)
    decode(budget, machine, 20)
    for _ in range(20):  # large chunks alone: three times cheaper by the token
        budget.observe(StepShape(PROMPT, 0, 1, PROMPT / 2), machine.prompt_s / 3)
    seconds = [seconds for _, seconds in prefill(budget, machine)]
    assert max(seconds[3:]) <= 4.6 * machine.decode_s


def test_progress_is_made_however_dear_prefill_is() -> None:
    budget, machine = PrefillBudget(4096, 4.0, 16), Machine(prompt_s=160.0, attention=0.0)
    decode(budget, machine, 20)
    counts = [count for count, _ in prefill(budget, machine)]
    assert set(counts[3:-1]) <= {0, FLOOR_TOKENS}


def test_one_wild_step_far_from_all_others_changes_little() -> None:
    """Nobody else has been at such a context, so the line through the others is all there is."""
    budget, machine = PrefillBudget(4096, 4.0, 16), Machine()
    decode(budget, machine, 20)
    for _ in range(3):
        prefill(budget, machine)
        decode(budget, machine, 5)
    before = budget.open(8).offer(1000, 2 * PROMPT)
    wild = 20 * machine.seconds(True, 128, 2.0 * PROMPT)
    budget.observe(StepShape(128, 8, 0, 2.0 * PROMPT), wild)
    assert budget.open(8).offer(1000, 2 * PROMPT) == pytest.approx(before, rel=0.25)


@pytest.mark.parametrize(
    ("rates", "cost"),
    [
        ([], 1.0),
        ([9.0], 1.0),
        ([9.0, 2.0], 2.0),
        ([9.0, 2.0, 3.0], 3.0),
        ([9.0, 9.0, 2.0, 3.0], 3.0),
    ],
)
def test_a_place_that_was_dearer_than_the_line_says_is_remembered(
    rates: list[float], cost: float
) -> None:
    """The median of the latest three at about 1,000 tokens; a single one proves nothing."""
    far = [Observation(64, context, 50.0, mixed=True) for context in (700.0, 1300.0)]
    near = [Observation(64, 900.0 + 40 * n, rate, mixed=True) for n, rate in enumerate(rates)]
    model = CostModel(slope=0.0, level=1.0, least=0.5, longest=64, mixed=far + near)
    assert model.seconds_per_token(1000.0) == cost
    assert model.seconds_per_token(5000.0) == 1.0


def test_longer_chunks_than_seen_must_fit_at_twice_the_price() -> None:
    budget, machine = (
        PrefillBudget(4096, 4.0, 16),
        Machine(prompt_s=0.2 * Machine.prompt_s, attention=0.0),
    )
    decode(budget, machine, 20)
    prefill(budget, machine)
    usual = budget.open(8).offer(5000, 0)
    decode(budget, machine, 20)
    for _ in range(60):  # short prompts only
        budget.observe(StepShape(32, 8, 1, 16.0), machine.seconds(True, 32, 16.0))
    assert budget.open(8).offer(5000, 0) <= 80 < usual
    counts = [count for count, _ in prefill(budget, machine)]
    assert max(counts[:8]) >= 0.9 * usual  # a long prompt soon has its usual chunks again


def test_chunks_at_most_double_until_they_have_been_seen() -> None:
    budget = PrefillBudget(8192, 4.0, 16)
    machine = Machine(prompt_s=0.001, attention=0.0)  # a machine that hardly notices prefill
    decode(budget, machine, 20)
    counts = [count for count, _ in prefill(budget, machine, tokens=20_000)]
    assert counts[:5] == [64, 128, 256, 512, 1024]
    assert max(counts) == 8192


def test_two_prompts_share_one_step() -> None:
    budget, machine = PrefillBudget(4096, 8.0, 16), Machine()
    decode(budget, machine, 20)
    prefill(budget, machine)
    decode(budget, machine, 10)
    allowance = budget.open(8)
    assert allowance.offer(40, 0) == 40
    allowance.spend(40, 0)
    second = allowance.offer(1000, 0)
    allowance.spend(second, 0)
    spent = machine.seconds(True, 40, 20.0) + machine.seconds(False, second, second / 2)
    assert 7 * machine.decode_s <= spent <= 9 * machine.decode_s
    assert allowance.offer(1000, 0) == 0


def test_decode_times_are_kept_by_batch_size() -> None:
    budget = PrefillBudget(4096, 4.0, 16)
    decode(budget, Machine(decode_s=0.010), 3, rows=1)
    decode(budget, Machine(decode_s=0.100), 3, rows=64)
    assert budget.decode_seconds(1) == pytest.approx(0.010)
    assert budget.decode_seconds(2) == pytest.approx(0.010)
    assert budget.decode_seconds(100) == pytest.approx(0.100)


@settings(max_examples=150, deadline=None)
@given(
    most=st.integers(1, 300),
    stretch=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    block=st.sampled_from([1, 2, 16]),
    steps=st.lists(
        st.tuples(
            st.integers(0, 40),
            st.floats(0.0, 10.0),
            st.lists(st.tuples(st.integers(1, 400), st.integers(0, 2000)), max_size=4),
        ),
        max_size=20,
    ),
)
def test_an_offer_is_always_within_its_limits(
    most: int,
    stretch: float,
    block: int,
    steps: list[tuple[int, float, list[tuple[int, int]]]],
) -> None:
    budget = PrefillBudget(most, stretch, block)
    for rows, seconds, wishes in steps:
        allowance = budget.open(rows)
        tokens, context, singles = 0, 0.0, 0
        for wanted, start in wishes:
            count = allowance.offer(wanted, start)
            assert 0 <= count <= wanted
            if rows == 0 and tokens == 0:
                assert count > 0, "with nothing else to do, the first in line makes progress"
            allowance.spend(count, start)
            tokens += count if count > 1 else 0
            singles += count == 1
            context += count * (start + count / 2) if count > 1 else 0.0
        assert tokens <= most
        shape = StepShape(tokens, rows + singles, 0, context / tokens if tokens else 0.0)
        budget.observe(shape, seconds)
