"""What is made of measured times: fractions, goals, 40B from fewer layers, transformers beside."""

import json
from pathlib import Path

import pytest

from tiercel.bench.gpu import __main__ as main_module
from tiercel.bench.gpu.__main__ import composed, main, run_all
from tiercel.bench.gpu.rows import decode_row, prefill_row
from tiercel.bench.gpu.stages import FORTY_LAYERS
from tiercel_kernels.benchmark.bounds import SHAPES
from tiercel_kernels.benchmark.peaks import Peaks
from tiercel_kernels.benchmark.report import table
from tiercel_kernels.benchmark.timing import Timing

PEAKS = Peaks(copy=3.0e12, read=3.0e12, gemm=800e12)
SEVEN, FORTY = SHAPES["falcon-7b"], SHAPES["falcon-40b"]


def _timing(us: float) -> Timing:
    return Timing(us, us, us, 40, "engine")


def test_a_decode_step_and_its_goal() -> None:
    row = decode_row(SEVEN, 1, 1024, _timing(5132.0), PEAKS)
    assert row["fraction"] == pytest.approx(0.9, abs=1e-3)
    assert row["note"] == "goal 0.85, met"
    assert "missed" in decode_row(SEVEN, 64, 1024, _timing(7000.0), PEAKS)["note"]
    assert decode_row(SEVEN, 1, 1024, _timing(5e3), PEAKS, " elsewhere")["note"] == ""


def test_a_prompt_and_its_goal() -> None:
    row = prefill_row(SEVEN, 2048, _timing(71_000.0), PEAKS)
    assert row["fraction"] == pytest.approx(0.5, abs=0.01)
    assert (row["limited_by"], row["note"]) == ("arithmetic", "goal 0.65, missed")


def test_forty_b_from_fewer_layers() -> None:
    """Times that are the bound times 1.25 with 100 us besides are the same for all layers."""
    rows = []
    for layers in FORTY_LAYERS:
        shape = FORTY.with_layers(layers)
        for batch in (1, 64):
            ideal = decode_row(shape, batch, 1024, _timing(1.0), PEAKS)["bound_us"]
            timing = _timing(100 + 1.25 * ideal)
            row = decode_row(shape, batch, 1024, timing, PEAKS, f", {layers} layers")
            rows.append(row | {"model": "falcon-40b"})
    made = composed(rows, PEAKS)[len(rows) :]
    assert [row["batch"] for row in made] == [1, 64]
    for row in made:
        assert row["us"] == pytest.approx(100 + 1.25 * row["bound_us"], rel=1e-3)
        assert "60 layers extrapolated" in row["case"]
        assert row["how"] == "extrapolated from 4 and 8"


def test_transformers_stands_beside_the_same_model_and_batch() -> None:
    ours = decode_row(SEVEN, 1, 1060, _timing(5000.0), PEAKS) | {"model": SEVEN.name}
    other = decode_row(SEVEN, 64, 1060, _timing(6000.0), PEAKS) | {"model": SEVEN.name}
    eager = Timing(25_000.0, 24e3, 26e3, 50, "eager")
    theirs = decode_row(SEVEN, 1, 1056, eager, PEAKS, " in transformers") | {
        "model": SEVEN.name,
        "of": "transformers",
    }
    made = composed([ours, other, theirs], PEAKS)
    assert made[0]["rivals"] == {
        "transformers eager": {"us": 25_000.0, "how": "eager", "ours_is_faster": 5.0}
    }
    assert made[1]["rivals"] == made[2]["rivals"] == {}
    assert {line.count("|") for line in table(made)} == {10}


def test_quantized_rows_have_bounds_and_goals_of_their_own_and_bfloat16_beside_them() -> None:
    plain = decode_row(SEVEN, 1, 1060, _timing(5000.0), PEAKS) | {"model": SEVEN.name}
    joined = decode_row(SEVEN, 1, 1060, _timing(1.0), PEAKS, " with") | {"model": SEVEN.name}
    joined["switches"] = ["joined_output"]
    int8 = decode_row(SEVEN, 1, 1060, _timing(3000.0), PEAKS, storage="int8")
    nf4 = decode_row(SEVEN, 1, 1060, _timing(2500.0), PEAKS, storage="nf4")
    many = decode_row(SEVEN, 64, 1060, _timing(6000.0), PEAKS, storage="nf4")
    prompt = prefill_row(SEVEN, 2048, _timing(71_000.0), PEAKS, storage="int8")
    assert int8["bound_us"] / plain["bound_us"] == pytest.approx(7.22 / 13.84, abs=0.01)
    assert nf4["bound_us"] / plain["bound_us"] == pytest.approx(4.32 / 13.84, abs=0.01)
    assert (int8["note"], nf4["note"]) == ("goal 0.75, met", "goal 0.60, missed")
    assert many["note"] == prompt["note"] == ""
    eager = decode_row(SEVEN, 1, 1056, _timing(9.0), PEAKS, " in transformers")
    eager |= {"of": "transformers"}
    made = composed(
        [each | {"model": SEVEN.name} for each in (int8, nf4, many, prompt, eager)]
        + [plain, joined],
        PEAKS,
    )
    assert made[0]["rivals"]["our bfloat16"]["ours_is_faster"] == pytest.approx(1.667, abs=1e-3)
    assert set(made[0]["rivals"]) == {"our bfloat16"}  # half the bytes of transformers'
    assert made[0]["note"] == "goal 0.75, met; 1.67 times bfloat16, goal 1.6, met"
    assert made[1]["note"] == "goal 0.60, missed; 2.00 times bfloat16, goal 2.2, missed"
    assert made[2]["rivals"] == made[3]["rivals"] == {}
    assert {line.count("|") for line in table(made)} == {10}


def test_40b_in_int8_stands_beside_what_its_bfloat16_would_take() -> None:
    rows = []
    for layers in FORTY_LAYERS:
        shape = FORTY.with_layers(layers)
        timing = _timing(1000.0 * layers)
        row = decode_row(shape, 1, 1024, timing, PEAKS, f", {layers} layers")
        rows.append(row | {"model": FORTY.name})
    int8 = decode_row(FORTY, 1, 1024, _timing(30_000.0), PEAKS, storage="int8")
    made = composed([*rows, int8 | {"model": FORTY.name}], PEAKS)
    (beside,) = made[2]["rivals"].values()
    assert beside["how"] == "extrapolated from 4 and 8"
    assert beside["ours_is_faster"] == 2.0
    assert made[2]["note"] == "goal 0.82, missed; 2.00 times bfloat16, goal 1.6, met"


class Children:
    """Stands where processes are started: one stage works, one fails, one takes too long."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def __call__(self, stage: str, device: str, folder: Path, limit_s: float) -> int:
        self.stages.append(stage)
        if stage == "peaks":
            facts = {"name": "card", "date": "", "commit": "abc"}
            peaks = {"copy": 3e12, "read": 3e12, "gemm": 8e14}
            (folder / stage).write_text(json.dumps({"device": facts, "peaks": peaks}))
            return 0
        row = decode_row(SEVEN, 1, 1024, _timing(5000.0), PEAKS) | {"model": SEVEN.name}
        (folder / stage).write_text(json.dumps([row]))
        return {"falcon-7b": 0, "idle": -11, "eager": 124}[stage]


def test_a_stage_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children()
    monkeypatch.setattr(main_module, "_child", children)
    rows = run_all(["falcon-7b", "idle", "eager"], "cuda", tmp_path, 1000.0)
    assert children.stages == ["peaks", "falcon-7b", "idle", "eager"]
    assert [row["verdict"] for row in rows if row["verdict"] != "timed"] == [
        "died: the process ended with -11",
        "left out: no time left",
    ]
    saved = json.loads((tmp_path / "card" / "engine.json").read_text())
    assert saved["rows"] == rows


def test_without_time_every_stage_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_module, "_child", Children())
    rows = run_all(["falcon-7b", "idle"], "cuda", tmp_path, 1.0)
    assert [row["verdict"] for row in rows] == ["left out: no time left"] * 2


def test_a_name_that_is_no_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["falcon-8b"])
    assert "no stage is called falcon-8b" in capsys.readouterr().err
