"""`python -m tiercel.bench.gpu`: peaks of the card, the engine, and transformers beside it.

Every stage is a child process; results are saved after each, so that a stage that fails, or for
which there is no time, costs no other.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tiercel.bench.gpu.rows import PLAIN, Row, beside_plain, extrapolate, stands_beside
from tiercel.bench.gpu.stages import FORTY_LAYERS, STAGES
from tiercel_kernels.benchmark.bounds import SHAPES
from tiercel_kernels.benchmark.machine import describe
from tiercel_kernels.benchmark.peaks import Peaks, measure_peaks
from tiercel_kernels.benchmark.report import Results, left_out, table
from tiercel_kernels.benchmark.script import RESULTS, is_problem

PEAKS = "peaks"
_LEAST_S = 20.0  # less than this starts no stage
_PEAKS_S = 120.0  # importing, and the first touch of the device


def run_stage(name: str, device: torch.device, folder: Path) -> None:
    """In a child: append the rows of a stage to its file, one by one."""
    if name == PEAKS:
        facts = {"device": describe(device), "peaks": asdict(measure_peaks(device))}
        (folder / PEAKS).write_text(json.dumps(facts), encoding="utf-8")
        return
    peaks = Peaks(**json.loads((folder / PEAKS).read_text(encoding="utf-8"))["peaks"])
    rows: list[Row] = []
    try:
        for row in STAGES[name](device, peaks):
            rows.append(row)
            (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    except Exception as error:
        short = " ".join(str(error).split())[:300]
        rows.append(_failure(name, f"failed: {type(error).__name__}: {short}"))
        (folder / name).write_text(json.dumps(rows), encoding="utf-8")
        raise


def run_all(stages: Sequence[str], device: str, out: Path, budget_s: float) -> list[Row]:
    """Peaks, then every stage for which there is time. Returns all rows; they are saved too."""
    ends = time.monotonic() + budget_s
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if _child(PEAKS, device, folder, max(budget_s, _PEAKS_S)) != 0:
            return [_failure(PEAKS, "failed: the card could not be measured")]
        facts: dict[str, Any] = json.loads((folder / PEAKS).read_text(encoding="utf-8"))
        peaks = Peaks(**facts["peaks"])
        results = Results(out, facts["device"], peaks.to_json())
        print(f"{results.folder.name}: {peaks.to_json()}", flush=True)
        rows: list[Row] = []
        for stage in stages:
            began = time.monotonic()
            rows += _rows_of(stage, device, folder, ends)
            print(f"{stage}: {time.monotonic() - began:.0f} s", flush=True)
            results.save("engine", composed(rows, peaks))
        return composed(rows, peaks)


def _rows_of(stage: str, device: str, folder: Path, ends: float) -> list[Row]:
    rest_s = ends - time.monotonic()
    if rest_s < _LEAST_S:
        return left_out([stage], "no time left")
    code = _child(stage, device, folder, rest_s)
    path = folder / stage
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if code == 124:
        rows += left_out([f"{stage}, the rest"], "no time left")
    elif code != 0 and not any(is_problem(row) for row in rows):
        rows.append(_failure(stage, f"died: the process ended with {code}"))
    return rows


def _failure(stage: str, verdict: str) -> Row:
    return {"case": stage, "verdict": verdict, "note": ""}


def composed(rows: Sequence[Row], peaks: Peaks) -> list[Row]:
    """The rows with what follows from several of them: 40B in full, transformers and our own
    bfloat16 beside ours.
    """
    made = [row | ({"rivals": {}} if "us" in row else {}) for row in rows]
    forty = SHAPES["falcon-40b"]
    few, many = ([row for row in made if _of_forty(row, layers)] for layers in FORTY_LAYERS)
    if len(few) == len(many):
        pairs = zip(few, many, strict=True)
        made += [extrapolate(*pair, forty, peaks) | {"model": forty.name} for pair in pairs]
    stands_beside(made)
    beside_plain(made)
    return made


def _of_forty(row: Row, layers: int) -> bool:
    ours = row.get("of") != "transformers" and row.get("model") == "falcon-40b"
    plain = row.get("storage", PLAIN) == PLAIN
    return ours and plain and row.get("layers") == layers


def _child(stage: str, device: str, folder: Path, limit_s: float) -> int:
    command = [sys.executable, "-m", "tiercel.bench.gpu", "--stage", stage, "--device", device]
    command += ["--folder", str(folder)]
    try:
        return subprocess.run(command, check=False, timeout=limit_s).returncode
    except subprocess.TimeoutExpired:
        return 124


def main(argv: Sequence[str] | None = None) -> int:
    """0 unless a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; all if none is named")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget-s", type=float, default=420.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # of a child
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.stage is not None:
        run_stage(arguments.stage, torch.device(arguments.device), arguments.folder)
        return 0
    stages = arguments.stages or list(STAGES)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        parser.error(f"no stage is called {', '.join(unknown)}")
    rows = run_all(stages, arguments.device, arguments.out, arguments.budget_s)
    print("\n".join(["## engine", *table(rows)]))
    return 1 if any(is_problem(row) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
