"""The best tokens of prompt positions on their way from the worker to the first delta."""

from tiercel.cache.pool import BlockPool
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.request import GenerationRequest, SamplingParams
from tiercel.wire.step import PromptLogprobs, SampledToken, StepOutput, StepPlan


def scheduler(*, prompt_logprobs: bool = True, top_n: int = 2) -> Scheduler:
    """One request with a prompt of seven tokens, in chunks of three."""
    made = Scheduler(SchedulerLimits(1, 64, 3, 0.0), BlockPool(8, 1))
    made.add(
        GenerationRequest(
            id=1,
            token_ids=list(range(7)),
            max_new_tokens=2,
            sampling=SamplingParams(),
            stop_token_ids=[],
            prompt_logprobs=prompt_logprobs,
            prompt_top_n=top_n,
        )
    )
    return made


def answer(plan: StepPlan) -> StepOutput:
    """Position p has the best ids p and 10 p."""
    (piece,) = plan.slices
    positions = range(piece.start + 1, min(piece.start + piece.count + 1, 7))
    values = PromptLogprobs(
        piece.row,
        piece.start + 1,
        [-float(p) for p in positions],
        [[p, 10 * p] for p in positions],
        [[-0.1 * p, -0.2 * p] for p in positions],
    )
    drawn = [SampledToken(piece.row, 9, -1.0)] if piece.sample else []
    return StepOutput(plan.step, drawn, [values] if positions else [], [], 0.01, 0.01)


def step(made: Scheduler) -> StepPlan:
    plan = made.schedule()
    assert plan is not None
    return plan


def test_chunks_come_together_in_the_first_delta_and_only_there() -> None:
    made = scheduler()
    deltas = []
    while not made.idle:
        plan = step(made)
        deltas += made.apply(plan, answer(plan))
    first, second = deltas
    assert first.prompt_logprobs == [None, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    assert first.prompt_top_ids == [[], *([p, 10 * p] for p in range(1, 7))]
    assert first.prompt_top_logprobs == [[], *([-0.1 * p, -0.2 * p] for p in range(1, 7))]
    assert (second.prompt_top_ids, second.prompt_top_logprobs) == ([], [])


def test_a_chunk_that_runs_again_after_preemption_replaces_what_it_gave() -> None:
    made = scheduler()
    for _ in range(2):
        plan = step(made)
        assert plan.starts == [] or plan.starts[0].prompt_top_n == 2
        assert made.apply(plan, answer(plan)) == []
    made._preempt(made._running.pop())
    deltas = []
    while not made.idle:
        plan = step(made)
        deltas += made.apply(plan, answer(plan))
    assert [len(delta.prompt_top_ids) for delta in deltas] == [7, 0]
    assert deltas[0].prompt_top_ids[1:] == [[p, 10 * p] for p in range(1, 7)]


def test_nothing_is_kept_where_no_prompt_logprobs_or_no_best_ones_are_asked_for() -> None:
    for made in (scheduler(prompt_logprobs=False), scheduler(top_n=0)):
        deltas = []
        while not made.idle:
            plan = step(made)
            deltas += made.apply(plan, answer(plan))
        assert [delta.prompt_top_ids for delta in deltas] == [[], []]
        assert [delta.prompt_top_logprobs for delta in deltas] == [[], []]
