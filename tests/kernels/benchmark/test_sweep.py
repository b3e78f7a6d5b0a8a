"""The search for launch parameters, on a landscape whose best point is known."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tiercel_kernels.benchmark.sweep import Scored, Sweep, Trial, neighbours, report, search

CPU = torch.device("cpu")
VALUES = {"block": (16, 32, 64, 128), "warps": (1, 2, 4, 8)}
BEST = (64, 2)


@dataclass(frozen=True)
class Point:
    block: int
    warps: int


def _slow(point: Point) -> Callable[[], object]:
    steps = abs(VALUES["block"].index(point.block) - 2) + abs(
        VALUES["warps"].index(point.warps) - 1
    )
    return lambda: time.sleep(0.001 * (1 + steps))


def _sweep(check: Callable[[Point], str], *listed: Point) -> Sweep:
    return Sweep("large", listed, VALUES, lambda _: [Trial("1 x 1024", [_slow], check)])


def test_neighbours_are_one_step_away_also_from_a_value_that_is_not_listed() -> None:
    assert neighbours(Point(16, 4), VALUES) == [Point(32, 4), Point(16, 2), Point(16, 8)]
    assert neighbours(Point(48, 8), VALUES) == [Point(32, 8), Point(64, 8), Point(48, 4)]


def test_it_walks_to_the_best_point() -> None:
    names, scored = search(_sweep(lambda _: "", Point(16, 8), Point(16, 4)), CPU, 60.0)
    assert scored[0].point == Point(*BEST)
    assert len({each.point for each in scored}) == len(scored) < 16
    lines = report(_sweep(lambda _: ""), scored, names)
    assert lines[-1].startswith("  'large': [Point(block=64, warps=2), ")
    assert "1 x 1024" in lines[1]


def test_without_time_only_the_first_point_is_tried() -> None:
    _, scored = search(_sweep(lambda _: "", Point(16, 8), Point(64, 2)), CPU, 0.0)
    assert [each.point for each in scored] == [Point(16, 8)]


def test_wrong_and_impossible_points_are_never_the_best() -> None:
    def check(point: Point) -> str:
        if point.warps == 2:
            raise RuntimeError("out of resources: shared memory")
        return "off by 1" if point.block == 64 else ""

    names, scored = search(_sweep(check, Point(64, 4)), CPU, 60.0)
    assert not scored[0].problem
    assert (scored[0].point.block, scored[0].point.warps) not in ((64, 2), (64, 4))
    lines = report(_sweep(check), scored, names)
    assert any("WRONG, 1 x 1024: off by 1" in line for line in lines)
    assert any("shared memory" in line for line in lines)


def test_the_score_is_the_geometric_mean() -> None:
    assert abs(Scored(None, (1.0, 100.0)).score - 10.0) < 1e-9
    assert Scored(None, (), "no").score == float("inf")
