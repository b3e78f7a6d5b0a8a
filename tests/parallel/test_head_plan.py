"""HeadPlan: every head is somewhere, exactly once, beside the KV head it attends to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.errors import ConfigError
from tiercel.parallel.head_plan import MOST_RANKS, PADDING, HeadPlan, legal_ranks


@st.composite
def models(draw: st.DrawFn) -> tuple[int, int, int]:
    """Query heads, KV heads, and a number of ranks that they can be dealt to."""
    kv_heads = draw(st.integers(1, 16))
    heads = kv_heads * draw(st.integers(1, 80))
    return heads, kv_heads, draw(st.sampled_from(legal_ranks(heads, kv_heads)))


@given(models())
def test_every_query_head_is_on_one_rank(model: tuple[int, int, int]) -> None:
    heads, kv_heads, ranks = model
    plan = HeadPlan.of(heads, kv_heads, ranks)
    dealt = [head for mine in plan.query for head in mine if head != PADDING]
    assert sorted(dealt) == list(range(heads))
    assert all(len(mine) == plan.heads for mine in plan.query)
    assert all(any(head != PADDING for head in mine) for mine in plan.query)


@given(models())
def test_every_head_is_beside_its_kv_head(model: tuple[int, int, int]) -> None:
    """Head i of a rank attends to its KV head i // (heads / KV heads): kernels rely on it."""
    heads, kv_heads, ranks = model
    plan = HeadPlan.of(heads, kv_heads, ranks)
    served = plan.heads // plan.kv_heads
    assert served * plan.kv_heads == plan.heads
    for query, kv in zip(plan.query, plan.kv, strict=True):
        for place, head in enumerate(query):
            if head != PADDING:
                assert head // (heads // kv_heads) == kv[place // served]


@given(models())
def test_kv_heads_are_dealt_out_or_on_as_few_ranks_as_can_be(model: tuple[int, int, int]) -> None:
    heads, kv_heads, ranks = model
    plan = HeadPlan.of(heads, kv_heads, ranks)
    held = [head for mine in plan.kv for head in mine]
    assert len(held) == max(kv_heads, ranks)
    assert set(held) == set(range(kv_heads))


@given(models())
def test_little_is_padding(model: tuple[int, int, int]) -> None:
    heads, kv_heads, ranks = model
    plan = HeadPlan.of(heads, kv_heads, ranks)
    assert plan.ranks * plan.heads - heads < max(ranks, 1)


@given(st.integers(1, 16), st.integers(1, 80), st.integers(-3, MOST_RANKS + 3))
def test_other_numbers_are_refused_with_the_list(kv_heads: int, group: int, ranks: int) -> None:
    heads = kv_heads * group
    if ranks in legal_ranks(heads, kv_heads):
        return
    with pytest.raises(ConfigError, match=f"--num-shard {ranks} does not deal {heads} query heads"):
        HeadPlan.of(heads, kv_heads, ranks)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "each", "kv_each"),
    [
        (71, 1, 2, 36, 1),
        (71, 1, 4, 18, 1),
        (71, 1, 8, 9, 1),
        (128, 8, 2, 64, 4),
        (128, 8, 8, 16, 1),
        (128, 8, 16, 8, 1),
        (232, 8, 8, 29, 1),
        (232, 8, 16, 15, 1),
        (32, 32, 4, 8, 8),
    ],
)
def test_published_models(heads: int, kv_heads: int, ranks: int, each: int, kv_each: int) -> None:
    plan = HeadPlan.of(heads, kv_heads, ranks)
    assert (plan.heads, plan.kv_heads) == (each, kv_each)


def test_the_message_names_the_legal_numbers() -> None:
    with pytest.raises(ConfigError, match=r"it can be 1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64$"):
        HeadPlan.of(128, 8, 3)
