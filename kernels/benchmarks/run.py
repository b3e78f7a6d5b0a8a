"""All ops in a bounded time: `python -m benchmarks.run --budget-s 420`. Peaks of the card first.

The ops run in a child process, since a kernel that writes where it must not takes the device with
it: the parent writes that down and goes on with the next op in a new child.
"""

import argparse
import importlib
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

from tiercel_kernels.benchmark.machine import describe
from tiercel_kernels.benchmark.peaks import Peaks, measure_peaks
from tiercel_kernels.benchmark.report import Results, table
from tiercel_kernels.benchmark.script import RESULTS, is_problem, run_cases

# Shares of the time; what an op leaves over goes to those behind it.
SHARES = {
    "decode_attention": 30,
    "skinny_linear": 20,
    "prefill_attention": 14,
    "qkv_rotary_cache": 7,
    "residual_norm": 7,
    "sample": 8,
    "gelu": 5,
    "penalties": 3,
    "vocab_mask": 4,
    "decode_plan": 2,
    "int8_linear": 8,
    "nf4_linear": 8,
    "nf4_dequantize": 3,
}
_GRACE_S = 60.0  # for a case that was under way when the time was over


def run_here(
    ops: Sequence[str], device: torch.device, out: Path, budget_s: float, log: Path
) -> int:
    """Measure the ops in this process. `log` gets a line when one begins and when one is done."""
    began = time.monotonic()
    peaks = _peaks(device, log)
    results = Results(out, describe(device), peaks.to_json())
    print(f"{results.folder.name}: {peaks.to_json()}", flush=True)
    whole = sum(SHARES[op] for op in ops)
    due, problems = 0, 0
    for op in ops:
        _note(log, f"begin {op}")
        due += SHARES[op]
        cases = importlib.import_module(f"benchmarks.{op}").cases()
        rows = run_cases(op, cases, device, peaks, results, began + budget_s * due / whole)
        print("\n".join(["", f"## {op}", *table(rows)]), flush=True)
        problems += sum(is_problem(row) for row in rows)
        _note(log, f"done {op}")
    return 1 if problems else 0


def _peaks(device: torch.device, log: Path) -> Peaks:
    """Measured once per run: a child that comes after another takes what that one has found."""
    found = log.with_suffix(".peaks")
    if found.exists():
        return Peaks(**json.loads(found.read_text()))
    peaks = measure_peaks(device)
    found.write_text(json.dumps(asdict(peaks)))
    return peaks


def _note(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(line + "\n")


def run_all(ops: Sequence[str], device: str, out: Path, budget_s: float) -> int:
    """Children, one after the other, until every op was measured or had its child die."""
    ends = time.monotonic() + budget_s
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        left = list(ops)
        while left:
            rest_s = max(1.0, ends - time.monotonic())
            code = _child(left, device, out, rest_s, log)
            lines = log.read_text().splitlines()
            begun = [line.split()[1] for line in lines if line.startswith("begin ")]
            done = [line.split()[1] for line in lines if line.startswith("done ")]
            left = [op for op in left if op not in begun]
            if code not in (0, 1) or len(begun) > len(done) or not begun:
                print(f"the process of {begun[-1:] or left} ended with {code}", flush=True)
                worst = 1
                if len(begun) == len(done):
                    break  # before any op: no kernel of ours
                _write_down(out, begun[-1], f"died: the process ended with {code}")
            worst = max(worst, code if code in (0, 1) else 1)
    return worst


def _child(ops: Sequence[str], device: str, out: Path, budget_s: float, log: Path) -> int:
    command = [sys.executable, "-m", "benchmarks.run", *ops, "--device", device, "--out", str(out)]
    command += ["--budget-s", str(budget_s), "--log", str(log)]
    try:
        return subprocess.run(command, check=False, timeout=budget_s + _GRACE_S).returncode
    except subprocess.TimeoutExpired:
        return 124


def _write_down(out: Path, op: str, verdict: str) -> None:
    """A last row for the op whose process died, behind those that were saved before.

    The newest file of the op is that of the run: it was written when the op began.
    """
    path = max(out.glob(f"*/{op}.json"), key=lambda each: each.stat().st_mtime)
    saved: dict[str, Any] = json.loads(path.read_text())
    rows = [*saved["rows"], {"case": "the next one", "verdict": verdict, "note": ""}]
    Results(out, saved["device"], saved["peaks"]).save(op, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """0 if everything that was run is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", nargs="*", help=f"of {', '.join(SHARES)}; all if none is named")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget-s", type=float, default=420.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)  # of a child
    arguments = parser.parse_args(argv)
    ops = arguments.op or list(SHARES)
    unknown = [op for op in ops if op not in SHARES]
    if unknown:
        parser.error(f"no op is called {', '.join(unknown)}")
    if arguments.log is None:
        return run_all(ops, arguments.device, arguments.out, arguments.budget_s)
    device = torch.device(arguments.device)
    return run_here(ops, device, arguments.out, arguments.budget_s, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
