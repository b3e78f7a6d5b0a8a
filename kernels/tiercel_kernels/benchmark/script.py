"""What the benchmark of one op does when it is run: peaks first, then its cases, or a sweep."""

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tiercel_kernels.benchmark import sweep as sweeping
from tiercel_kernels.benchmark.case import Case, Row, measure
from tiercel_kernels.benchmark.machine import describe
from tiercel_kernels.benchmark.peaks import Peaks, measure_peaks
from tiercel_kernels.benchmark.report import Results, left_out, table
from tiercel_kernels.benchmark.sweep import Sweep
from tiercel_kernels.device import capability

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
Sweeps = Callable[[int], list[Sweep]]  # of a compute capability


def run_cases(
    op: str,
    cases: Sequence[Case],
    device: torch.device,
    peaks: Peaks,
    results: Results,
    ends: float,
) -> list[Row]:
    """Measure one case after the other until `ends` (time.monotonic); saved after each of them."""
    rows: list[Row] = []
    results.save(op, rows)  # what an older run found is gone, should this one end early
    gc.collect()
    gc.freeze()  # a capture collects garbage: now only what the cases leave behind
    try:
        for number, case in enumerate(cases):
            if time.monotonic() > ends:
                rows += left_out((each.name for each in cases[number:]), "no time left")
                break
            rows.append(measure(case, device, peaks))
            results.save(op, rows)
    finally:
        gc.unfreeze()
    results.save(op, rows)
    return rows


def run_sweeps(
    op: str, sweeps: Sequence[Sweep], device: torch.device, results: Results, budget_s: float
) -> list[str]:
    """Search every entry of the op's table within the time; the lines of the report."""
    ends = time.monotonic() + budget_s
    lines: list[str] = []
    found = []
    for number, each in enumerate(sweeps):
        share_s = max(0.0, ends - time.monotonic()) / (len(sweeps) - number)
        names, scored = sweeping.search(each, device, share_s)
        lines += sweeping.report(each, scored, names)
        found.append(sweeping.to_json(each, scored, names))
        results.save(f"sweep-{op}", [], sweep=found)
    return lines


def main(
    op: str, cases: Sequence[Case], sweeps: Sweeps | None = None, argv: Sequence[str] | None = None
) -> int:
    """0 unless the results of a kernel were wrong or a case failed."""
    parser = argparse.ArgumentParser(description=f"Time of {op} against its bound.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget-s", type=float, default=120.0, help="for all cases together")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    if sweeps is not None:
        parser.add_argument(
            "--sweep", type=float, metavar="SECONDS", help="search launch parameters instead"
        )
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    peaks = measure_peaks(device)
    results = Results(arguments.out, describe(device), peaks.to_json())
    print(f"{results.folder.name}: {peaks.to_json()}", flush=True)
    if sweeps is not None and arguments.sweep is not None:
        wanted = [each for each in sweeps(capability(device)) if arguments.only in each.key]
        lines = run_sweeps(op, wanted, device, results, arguments.sweep)
        print("\n".join(lines))
        return 0
    ends = time.monotonic() + arguments.budget_s
    chosen = [case for case in cases if arguments.only in case.name]
    rows = run_cases(op, chosen, device, peaks, results, ends)
    print("\n".join([f"## {op}", *table(rows)]))
    return 1 if any(is_problem(row) for row in rows) else 0


def is_problem(row: Row) -> bool:
    """Whether something is wrong, and not just left out."""
    return str(row["verdict"]).startswith(("WRONG", "failed", "died"))
