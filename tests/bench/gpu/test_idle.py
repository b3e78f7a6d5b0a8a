"""Gaps between kernels, on times that were written down by hand."""

import pytest

from tiercel.bench.gpu.idle import gaps, idle_of


def test_overlapping_kernels_leave_no_gap() -> None:
    found, busy = gaps([(5.0, 9.0), (0.0, 6.0), (9.0, 10.0), (12.0, 13.0)])
    assert (found, busy) == ([2.0], 11.0)


def test_a_kernel_within_another_adds_nothing() -> None:
    assert gaps([(0.0, 10.0), (2.0, 3.0), (11.0, 12.0)]) == ([1.0], 11.0)


def test_the_long_gaps_are_those_between_steps() -> None:
    intervals = []
    for step in range(4):
        begin = 100.0 * step  # three kernels of 20, 1 apart; 38 until the next step
        intervals += [(begin + 21 * i, begin + 21 * i + 20) for i in range(3)]
    idle = idle_of(intervals, 4)
    assert idle.between_us == pytest.approx(38.0)
    assert idle.inside_us == pytest.approx(2.0)
    assert idle.busy_us == pytest.approx(60.0)


def test_a_device_that_was_never_idle() -> None:
    assert idle_of([(0.0, 10.0), (10.0, 20.0)], 2).between_us == 0.0


def test_a_profiler_that_sees_nothing_is_an_error_and_not_a_good_figure() -> None:
    with pytest.raises(ValueError, match="saw nothing"):
        idle_of([], 10)
