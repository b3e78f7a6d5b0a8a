"""Verdicts, JSON and the printed table."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tiercel.bench.report import Figure, Report, describe_machine
from tiercel.bench.run import run_bench
from tiercel.errors import ConfigError


@pytest.mark.parametrize(
    ("figure", "passed", "limit"),
    [
        (Figure("a", 5.0, "x"), None, ""),
        (Figure("a", 5.0, "x", at_least=5.0), True, ">= 5"),
        (Figure("a", 4.9, "x", at_least=5.0), False, ">= 5"),
        (Figure("a", 2.0, "s", at_most=2.0), True, "<= 2"),
        (Figure("a", 2.1, "s", at_most=2.0), False, "<= 2"),
        (Figure("a", 1.0, "s", at_least=2.0, at_most=3.0), False, ">= 2, <= 3"),
    ],
)
def test_verdicts(figure: Figure, passed: bool | None, limit: str) -> None:
    assert figure.passed is passed
    assert figure.limit == limit


def test_report_is_saved_and_shown(tmp_path: Path) -> None:
    figures = [Figure("rate", 12.5, "tokens/s"), Figure("ratio", 4.0, "x", at_least=5.0)]
    report = Report("throughput", "eyas", figures, [{"one": 1.0}, {"many": 2.0}])
    report.machine = describe_machine()
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["passed"] is False
    assert saved["verdicts"] == {"rate": None, "ratio": False}
    assert saved["rounds"] == [{"one": 1.0}, {"many": 2.0}]
    assert saved["machine"]["cores"] >= 1

    output = io.StringIO()
    report.show(Console(file=output, width=200))
    for part in ("throughput", "tokens/s", "12.5", ">= 5", "missed"):
        assert part in output.getvalue()


def test_an_unknown_scenario_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"called 'speed'; there are: throughput, prefix"):
        run_bench("speed")
