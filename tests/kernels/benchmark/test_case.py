"""A case becomes a row: right, wrong, too large or failed; and figures only where it is right."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiercel_kernels.benchmark import case as module
from tiercel_kernels.benchmark.case import Case, Inputs, difference, figures, measure
from tiercel_kernels.benchmark.peaks import Peaks
from tiercel_kernels.benchmark.report import Results, beside, left_out, summary, table
from tiercel_kernels.benchmark.script import is_problem, run_cases
from tiercel_kernels.benchmark.timing import Timing

CPU = torch.device("cpu")
PEAKS = Peaks(copy=2e12, read=4e12, gemm=800e12)
FACTS = {"name": "NVIDIA H100 80GB HBM3", "date": "2026-01-01 00:00", "commit": "abc1234"}


def _case(wrong: str = "", name: str = "one", **more: object) -> Case:
    def prepare(device: torch.device, seed: int) -> Inputs:
        x = torch.ones(1000, device=device)
        return Inputs(lambda: x + seed, lambda: wrong, {"torch": lambda: x.add(1)})

    return replace(Case(name, 8000.0, prepare), **more)


def test_a_right_kernel_gets_figures() -> None:
    row = measure(_case(), CPU, PEAKS)
    assert row["verdict"] == "right"
    assert row["fraction"] == pytest.approx(row["bound_us"] / row["us"], abs=1e-3)
    assert row["rivals"]["torch"]["us"] > 0
    assert not is_problem(row)


def test_a_wrong_kernel_gets_none() -> None:
    row = measure(_case("off by 3"), CPU, PEAKS)
    assert row == {"case": "one", "verdict": "WRONG: off by 3", "note": ""}
    assert is_problem(row)


def test_what_does_not_fit_is_left_out_and_what_fails_says_so() -> None:
    row = measure(_case(resident_bytes=1e15), CPU, PEAKS)
    assert row["verdict"] == "left out: takes 1000000.0 GB"
    assert not is_problem(row)

    def broken(device: torch.device, seed: int) -> Inputs:
        raise ValueError("no  such\nshape")

    row = measure(_case(prepare=broken), CPU, PEAKS)
    assert row["verdict"] == "failed: ValueError: no such shape"
    assert is_problem(row)


def test_a_rival_that_fails_does_not_cost_the_figure() -> None:
    def prepare(device: torch.device, seed: int) -> Inputs:
        def fail() -> object:
            raise RuntimeError("not for this shape")

        return Inputs(lambda: None, lambda: "", {"other": fail})

    row = measure(_case(prepare=prepare), CPU, PEAKS)
    assert row["verdict"] == "right"
    assert beside(row["rivals"]) == "other: RuntimeError: not for this shape"


def test_bound_and_fraction() -> None:
    timing = Timing(10.0, 9.0, 12.0, 7, "graph")
    row = figures(20e6, 0.0, timing, PEAKS)
    assert (row["bound_us"], row["limited_by"], row["fraction"]) == (5.0, "memory", 0.5)
    assert (row["fraction_of_copy"], row["gb_s"]) == (1.0, 2000.0)
    row = figures(1e3, 4e9, timing, PEAKS)
    assert (row["bound_us"], row["limited_by"], row["tflop_s"]) == (5.0, "arithmetic", 400.0)


def test_inputs_take_turns_until_the_cache_cannot_hold_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "l2_bytes", lambda _: 50 * 2**20)
    assert module.turns(100e6, CPU) == 5
    assert module.turns(10, CPU) == 48
    assert module.turns(1e9, CPU) == 1
    seeds: list[int] = []

    def prepare(device: torch.device, seed: int) -> Inputs:
        seeds.append(seed)
        return Inputs(lambda: None, lambda: "")

    made = measure(Case("one", 100e6, prepare), CPU, PEAKS)
    assert (made["inputs"], seeds) == (4, [0, 1, 2, 3])  # room for so many in 0.4 of 1 GiB


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_counts_as_equal(dtype: torch.dtype) -> None:
    expected = torch.tensor([4.0, -8.0, 0.5], dtype=dtype)
    allowed = 8 * module.TOLERANCES[dtype]
    assert difference(expected, expected) == ""
    assert difference(expected.float().add(allowed / 2).to(dtype), expected) == ""
    assert "off by" in difference(expected.float().add(allowed * 2).to(dtype), expected)
    assert "off by" in difference(torch.full_like(expected, torch.nan), expected)
    assert "shape" in difference(expected[:2], expected)


def test_a_run_saves_every_row_and_leaves_out_what_there_is_no_time_for(tmp_path: Path) -> None:
    results = Results(tmp_path, FACTS, PEAKS.to_json())
    run_cases("gelu", [_case(name="a"), _case("off", name="b")], CPU, PEAKS, results, 1e18)
    text = (tmp_path / "nvidia-h100-80gb-hbm3" / "README.md").read_text()
    assert "## gelu" in text and "| b | **WRONG: off** |" in text and "commit abc1234" in text
    rows = run_cases("gelu", [_case(name="a")], CPU, PEAKS, results, 0.0)
    assert rows == left_out(["a"], "no time left")
    assert "| a | **left out: no time left** |" in summary(results.folder)


def test_one_device_never_overwrites_another(tmp_path: Path) -> None:
    for name in ("NVIDIA H100", "NVIDIA H200"):
        results = Results(tmp_path, FACTS | {"name": name}, PEAKS.to_json())
        results.save("gelu", [measure(_case(name=name), CPU, PEAKS)])
    folders = sorted(each.name for each in tmp_path.iterdir())
    assert folders == ["nvidia-h100", "nvidia-h200"]
    for folder in folders:
        others = set(folders) - {folder}
        text = (tmp_path / folder / "README.md").read_text().lower().replace(" ", "-")
        assert folder in text and not any(other in text for other in others)


def test_every_line_of_a_table_has_as_many_cells() -> None:
    rows = [measure(_case(), CPU, PEAKS), *left_out(["b"], "x")]
    assert {line.count("|") for line in table(rows)} == {10}
