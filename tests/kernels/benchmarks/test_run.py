"""A child that dies takes its op with it, and no other."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run
from tiercel_kernels.benchmark.report import Results

FACTS = {"name": "card", "date": "", "commit": "abc"}


class Children:
    """Stands where processes are started: every one measures its ops but for the one that kills."""

    def __init__(self, kills: str) -> None:
        self.kills, self.started = kills, list[list[str]]()

    def run(self, command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        ops = command[3 : command.index("--device")]
        log = Path(command[command.index("--log") + 1])
        results = Results(Path(command[command.index("--out") + 1]), FACTS, {})
        self.started.append(ops)
        for op in ops:
            with log.open("a") as file:
                file.write(f"begin {op}\n")
                row = {"case": "first", "verdict": "left out: a test", "note": ""}
                results.save(op, [row])
                if op == self.kills:
                    return subprocess.CompletedProcess(command, -6)
                file.write(f"done {op}\n")
        return subprocess.CompletedProcess(command, 0)


def test_the_next_child_goes_on_behind_the_op_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(kills="gelu")
    monkeypatch.setattr(run.subprocess, "run", children.run)
    assert run.run_all(["sample", "gelu", "penalties"], "cuda", tmp_path, 100.0) == 1
    assert children.started == [["sample", "gelu", "penalties"], ["penalties"]]
    rows = json.loads((tmp_path / "card" / "gelu.json").read_text())["rows"]
    assert [row["verdict"] for row in rows] == [
        "left out: a test",
        "died: the process ended with -6",
    ]


def test_nothing_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children(kills="")
    monkeypatch.setattr(run.subprocess, "run", children.run)
    assert run.run_all(["sample", "gelu"], "cuda", tmp_path, 100.0) == 0
    assert len(children.started) == 1


def test_a_child_that_dies_before_any_op_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def fail(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        started.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(run.subprocess, "run", fail)
    assert run.run_all(["sample"], "cuda", tmp_path, 100.0) == 1
    assert len(started) == 1


def test_a_name_that_is_no_op_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["gleu"])
    assert "no op is called gleu" in capsys.readouterr().err
