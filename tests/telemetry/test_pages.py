"""What scrapers get: a page that is shared for a moment, and scrapers that are no good."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from tiercel.telemetry.exposition import Format
from tiercel.telemetry.metrics import PAGE_S, Metrics
from tiercel.telemetry.process import ProcessText
from tiercel.wire.messages import EngineStats, EngineStep, StepTiming

STATS = EngineStats(1, 0, 70, 100, 5, 0, 0, 0, 1, 0, 160)
STEP = EngineStep(1, [], STATS, StepTiming(0, 1, 0.01, 0.012, 0))


@dataclass(frozen=True)
class _Limits:
    max_input_tokens: int = 1000
    max_total_tokens: int = 2000


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.configure(_Limits())
    return metrics


def test_scrapers_share_a_page_for_a_moment(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    metrics.observe_step(STEP)
    first = metrics.page()
    metrics.observe_step(STEP)
    assert metrics.page() is first
    assert metrics.page("openmetrics") != first
    now_s += 2 * PAGE_S
    second = metrics.page()
    assert b"\ntiercel_step_tokens_count 2\n" in second and second != first


@pytest.mark.parametrize(
    "event",
    [
        lambda metrics: metrics.requests.count.inc(),
        lambda metrics: metrics.requests.failure.labels("dropped").inc(),
        lambda metrics: metrics.requests.rejected.labels("draining").inc(),
        lambda metrics: metrics.requests.prompt_tokens.inc(7),
        lambda metrics: metrics.server.streams_open.inc(),
        lambda metrics: metrics.server.add_edge(lambda: 1.0, float),
    ],
)
def test_whoever_asked_for_something_sees_it_counted(
    metrics: Metrics, event: Callable[[Metrics], None]
) -> None:
    first = metrics.page()
    event(metrics)
    assert metrics.page() != first


@pytest.mark.parametrize("kind", ["text", "openmetrics"])
def test_the_process_is_written_as_by_its_own_library(kind: Format) -> None:
    """But for how numbers look, and for those that change while they are read."""
    ours = ProcessText()
    write = generate_latest if kind == "text" else generate_openmetrics
    theirs = write(ours._registry).decode().removesuffix("# EOF\n")  # type: ignore[no-untyped-call, operator]

    def shape(text: str) -> list[str]:
        return [line if line[0] == "#" else line.rpartition(" ")[0] for line in text.splitlines()]

    assert shape(ours.text(kind)) == shape(theirs)
    values = [float(line.split()[-1]) for line in ours.text(kind).splitlines() if line[0] != "#"]
    assert len(values) > 10 and all(value >= 0 for value in values)
