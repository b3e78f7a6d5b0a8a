"""Cross-compilation: what it builds, what it reports, and what it refuses."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tiercel_kernels.compile_all import SHARED_LIMITS, Built, cases, modules, table

ROOT = Path(__file__).parents[2]
BUILT = Built("op", "op_kernel", "bf16", 86, 4, 3, 80, 99 * 1024, 0)


@pytest.mark.parametrize("module", modules())
def test_cases_name_every_argument_and_nothing_else(module: str) -> None:
    for case in cases(module):
        arguments = case.kernel.arg_names
        assert sorted({*case.signature, *case.constexprs}) == sorted(arguments), case.name
        assert not set(case.signature) & set(case.constexprs)
        assert set(case.aligned) <= set(case.signature)
        assert set(case.targets) <= set(SHARED_LIMITS) and case.targets


def test_no_two_rows_of_the_table_look_the_same() -> None:
    for module in modules():
        named = [
            (case.kernel.__name__, case.name, case.num_warps, case.num_stages, card)
            for case in cases(module)
            for card in case.targets
        ]
        assert len(named) == len(set(named)), module


def test_the_table_in_the_repository_has_a_row_for_every_case() -> None:
    """One that lacks some was not made anew: `make kernels-compile`."""
    lines = (ROOT / "kernels" / "COMPILED.md").read_text(encoding="utf-8").splitlines()
    listed = [
        tuple(cell.strip() for cell in line.split("|")[1:7])
        for line in lines
        if line.count("|") == 11 and not line.startswith(("| op |", "|---"))
    ]
    wanted = [
        (
            module,
            case.kernel.__name__,
            case.name,
            *map(str, (card, case.num_warps, case.num_stages)),
        )
        for module in modules()
        for case in cases(module)
        for card in case.targets
    ]
    assert sorted(listed) == sorted(wanted)


def test_the_limits() -> None:
    assert BUILT.problem == ""
    assert "of 101376" in replace(BUILT, shared=99 * 1024 + 1).problem
    assert replace(BUILT, shared=163 * 1024, architecture=80).problem == ""
    assert "8 bytes of registers spilled" in replace(BUILT, spilled=8).problem
    assert replace(BUILT, error="ValueError: no").problem == "ValueError: no"


def test_the_table_names_what_is_wrong() -> None:
    text = table([BUILT, replace(BUILT, spilled=8)])
    rows = [line for line in text.splitlines() if line.startswith("| op |")]
    assert rows[1] == "| op | op_kernel | bf16 | 86 | 4 | 3 | 80 | 99.0 | 0 |  |"
    assert rows[2].endswith("| 8 bytes of registers spilled |")


@pytest.mark.slow
def test_it_builds_for_all_cards(tmp_path: Path) -> None:
    """In a process of its own, where Triton compiles and does not interpret."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "kernels")
    report = tmp_path / "report.md"
    run = subprocess.run(
        [sys.executable, "-m", "tiercel_kernels.compile_all", "vocab_mask", "--write", report],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [line for line in report.read_text().splitlines() if "vocab_mask_kernel" in line]
    assert len(rows) == 14  # bfloat16 on all but sm_75
    assert {row.split("|")[4].strip() for row in rows} == {"75", "80", "86", "90", "120"}
