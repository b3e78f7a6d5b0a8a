"""Searches launch parameters for the tuning tables: all that a table lists, then step by step from
the best one to better neighbours, until nothing is better or the time is over.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tiercel_kernels.benchmark.case import release
from tiercel_kernels.benchmark.timing import Call, time_calls

_SHOWN = 5


@dataclass(frozen=True)
class Trial:
    """One case of a sweep: a call for every set of inputs, which take turns, and its check."""

    name: str
    runs: Sequence[Callable[[Any], Call]]
    check: Callable[[Any], str]


@dataclass(frozen=True)
class Sweep:
    """One entry of a tuning table. A point is a frozen dataclass of launch parameters."""

    key: str
    listed: Sequence[Any]
    values: Mapping[str, Sequence[Any]]  # field -> what it may be, in order
    prepare: Callable[[torch.device], list[Trial]]


@dataclass(frozen=True)
class Scored:
    """A point and its time in each case; the score is their geometric mean."""

    point: Any
    us: tuple[float, ...]
    problem: str = ""

    @property
    def score(self) -> float:
        """Microseconds; infinite where the point cannot be used."""
        if self.problem:
            return math.inf
        return math.exp(sum(math.log(each) for each in self.us) / len(self.us))


def neighbours(point: Any, values: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Points that differ in one field, by one step of its values."""
    found = []
    for name, allowed in values.items():
        now = getattr(point, name)
        below = [each for each in allowed if each < now][-1:]
        above = [each for each in allowed if each > now][:1]
        found += [replace(point, **{name: each}) for each in below + above]
    return found


def search(sweep: Sweep, device: torch.device, budget_s: float) -> tuple[list[str], list[Scored]]:
    """Names of the cases, and the points that were tried, the best first.

    The first listed point is tried whatever the budget.
    """
    ends = time.monotonic() + budget_s
    trials = sweep.prepare(device)
    tried: dict[Any, Scored] = {}

    def attempt(points: Sequence[Any]) -> None:
        for point in points:
            if point not in tried and (not tried or time.monotonic() < ends):
                tried[point] = _try(point, trials, device)

    attempt(sweep.listed)
    while time.monotonic() < ends:
        best = min(tried.values(), key=lambda each: each.score)
        before = len(tried)
        attempt(neighbours(best.point, sweep.values))
        if len(tried) == before:
            break
    names = [each.name for each in trials]
    trials.clear()
    release(device)
    return names, sorted(tried.values(), key=lambda each: each.score)


def _try(point: Any, trials: Sequence[Trial], device: torch.device) -> Scored:
    taken = []
    for trial in trials:
        try:
            wrong = trial.check(point)
            if wrong:
                return Scored(point, (), f"WRONG, {trial.name}: {wrong}")
            calls = [run(point) for run in trial.runs]
            taken.append(time_calls(calls, device, runs=5).median_us)
        except Exception as error:  # noqa: BLE001 - a point that cannot be launched is a result
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # raises where the device itself is lost
            return Scored(point, (), f"{type(error).__name__}: {' '.join(str(error).split())[:90]}")
    return Scored(point, tuple(taken))


def report(sweep: Sweep, scored: Sequence[Scored], names: Sequence[str]) -> list[str]:
    """Lines for people: the best points with their times, and a line for the table."""
    good = [each for each in scored if not each.problem]
    lines = [f"{sweep.key}: {len(scored)} points, {len(scored) - len(good)} of no use"]
    for each in good[:_SHOWN]:
        times = ", ".join(f"{name} {us:.1f} us" for name, us in zip(names, each.us, strict=True))
        lines.append(f"  {each.score:9.2f} us  {each.point}  ({times})")
    lines += [f"  {each.point}: {each.problem}" for each in scored if each.problem]
    if good:
        lines.append(f"  {sweep.key!r}: [{', '.join(str(each.point) for each in good[:2])}],")
    return lines


def to_json(sweep: Sweep, scored: Sequence[Scored], names: Sequence[str]) -> dict[str, Any]:
    """Everything that was tried."""
    return {
        "key": sweep.key,
        "cases": list(names),
        "points": [
            {"point": str(each.point), "us": list(each.us), "problem": each.problem}
            for each in scored
        ],
    }
