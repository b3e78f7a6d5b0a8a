"""Every op's benchmark on tiny shapes: checked, timed, with its rivals; and what it would measure.

Where there is no GPU the kernels run in Triton's interpreter, so that times mean nothing here.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import (
    decode_attention,
    decode_plan,
    gelu,
    int8_linear,
    nf4_dequantize,
    nf4_linear,
    penalties,
    prefill_attention,
    qkv_rotary_cache,
    residual_norm,
    rivals,
    sample,
    skinny_linear,
    vocab_mask,
)
from benchmarks.four_bit_inputs import NF4, four_bit
from benchmarks.inputs import BLOCK_TOKENS, PagedCache, dtype_of, randn
from benchmarks.run import SHARES, run_here
from support.kernels import DEVICE
from tiercel.attention.cache import KvCache
from tiercel.quantization.tables import four_bit_table
from tiercel_kernels.benchmark.bounds import FalconShape
from tiercel_kernels.benchmark.case import Case, difference, measure
from tiercel_kernels.benchmark.peaks import Peaks
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.benchmark.sweep import Sweep, search
from tiercel_kernels.compile_case import ARCHITECTURES
from tiercel_kernels.ops import Ops
from tiercel_kernels.tuning.decode_attention import DecodeVariant
from tiercel_kernels.tuning.prefill_attention import PrefillVariant
from tiercel_kernels.tuning.qkv_rotary_cache import QkvVariant
from tiercel_kernels.tuning.skinny_linear import LinearVariant

MULTI_QUERY = FalconShape("multi-query", 1, 144, 9, 1, 16, 96, 500, True)
GROUPED = FalconShape("grouped", 1, 128, 4, 2, 32, 96, 500, False, norms=2)
ALIBI = FalconShape("alibi", 1, 64, 2, 2, 32, 96, 500, True, parallel=False, alibi=True)
PEAKS = Peaks(1e10, 1e10, 1e11)

SCRIPTS: list[ModuleType] = [
    decode_attention,
    decode_plan,
    gelu,
    int8_linear,
    nf4_dequantize,
    nf4_linear,
    penalties,
    prefill_attention,
    qkv_rotary_cache,
    residual_norm,
    sample,
    skinny_linear,
    vocab_mask,
]
SMALL: list[Case] = [
    decode_attention.case(MULTI_QUERY, [40] * 2, "2 x 40"),
    decode_attention.case(ALIBI, [40] * 2, "2 x 40"),
    decode_attention.case(GROUPED, [70, 3], "70 and 3"),
    decode_plan.case(3),
    gelu.case(GROUPED, 2),
    int8_linear.case((40, 64), 3, "some"),
    nf4_dequantize.case((40, 64), "some"),
    nf4_linear.case((40, 64), 3, "some"),
    penalties.case(2, vocab=500, known=40),
    prefill_attention.case(MULTI_QUERY, [(0, 20)] * 2, "2 of 20"),
    prefill_attention.case(ALIBI, [(17, 9)], "9 behind 17"),
    qkv_rotary_cache.case(GROUPED, 3),
    qkv_rotary_cache.case(ALIBI, 1),
    residual_norm.case(MULTI_QUERY, 2),
    residual_norm.case(GROUPED, 2),
    *(sample.case(name, 2, vocab=300) for name in sample.KINDS),
    skinny_linear.case((40, 64), 3, "some"),
    skinny_linear.case((200, 64), 1, "up", gelu=True),
    *(vocab_mask.case(2, eighths, vocab=300) for eighths in (0, 4, 7)),
]


def _small_sweeps() -> list[Sweep]:
    return [
        decode_attention.sweep(MULTI_QUERY, [DecodeVariant(32, 4, 3, 1)], [(1, 40)]),
        prefill_attention.sweep(GROUPED, [PrefillVariant(32, 32, 4, 2)], {"5": [(3, 5)]}),
        qkv_rotary_cache.sweep(MULTI_QUERY, [QkvVariant(8, 2)], [2]),
        skinny_linear.sweep((40, 64), [LinearVariant(32, 64, 1, 4, 3)], [2], "some"),
    ]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_is_right_and_timed_beside_its_rivals(case: Case) -> None:
    row = measure(case, DEVICE, PEAKS)
    assert row["verdict"] == "right"
    assert row["us"] > 0
    assert not [rival for rival in row["rivals"].values() if "failed" in rival]


@pytest.mark.parametrize("sweep", _small_sweeps(), ids=lambda sweep: sweep.key)
def test_a_sweep_tries_what_the_table_lists(sweep: Sweep) -> None:
    names, scored = search(sweep, DEVICE, 0.0)
    assert len(names) == len(scored[0].us) == 1
    assert scored[0].problem == ""
    wrong = {name for name in sweep.values if not hasattr(scored[0].point, name)}
    assert not wrong


def test_there_is_a_script_for_every_op() -> None:
    ops = set(Ops.__dataclass_fields__) - {"name", "reason"}
    assert {script.OP for script in SCRIPTS} == set(SHARES) == ops


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.OP)
def test_what_would_be_measured_has_names_and_bytes(script: ModuleType) -> None:
    cases: list[Case] = script.cases()
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.moved_bytes > 0 for case in cases)
    for capability in (75, *ARCHITECTURES, 120) if hasattr(script, "sweeps") else ():
        sweeps: list[Sweep] = script.sweeps(capability)
        assert len({each.key for each in sweeps}) == len(sweeps)
        for each in sweeps:
            # Every listed point may be walked away from: its fields are those of the values.
            assert set(each.values) == set(each.listed[0].__dataclass_fields__)


def test_the_largest_case_of_decode_attention_fits_a_card_of_80_gb() -> None:
    largest = max(case.resident_bytes for case in decode_attention.cases())
    assert largest < 0.4 * 78 * 2**30


def test_skewed_lengths_have_an_even_case_of_as_many_keys_beside_them() -> None:
    skewed, even = sum(decode_attention.SKEWED), sum(decode_attention.EVEN)
    assert len(decode_attention.EVEN) == len(decode_attention.SKEWED) == 64
    assert 0 <= skewed - even < 64


def test_attention_is_measured_on_the_cache_that_is_served() -> None:
    shape = GROUPED
    cache = KvCache(1, 9, BLOCK_TOKENS, shape.kv_heads * shape.head_dim, dtype_of(DEVICE), DEVICE)
    view = (-1, BLOCK_TOKENS, shape.kv_heads, shape.head_dim)
    served = cache.layers[0].blocks[0].view(view)
    measured = PagedCache.random(shape, [40], DEVICE, 0)
    assert measured.keys.stride() == measured.values.stride() == served.stride()


def test_torchs_way_gives_the_same_as_the_kernel() -> None:
    """A rival that computed something else would be no rival."""
    given = qkv_rotary_cache.Projected.random(GROUPED, 3, DEVICE, 0)
    assert given.wrong(lambda: qkv_rotary_cache._in_torch(given)) == ""
    step = decode_attention.Step.random(ALIBI, [33], DEVICE, 0)
    dense = decode_attention._sdpa(step, 0)()
    assert isinstance(dense, torch.Tensor)
    assert dense.shape == (1, ALIBI.kv_heads, ALIBI.group, ALIBI.head_dim)


@pytest.mark.parametrize("rows", [1, 3])
def test_bitsandbytes_gives_the_same_as_the_kernels(rows: int) -> None:
    """Its int8 product rounds to float16; on a GPU it quantizes the activations as well."""
    pytest.importorskip("bitsandbytes")
    x = randn(rows, 128, device=DEVICE, seed=1, dtype=dtype_of(DEVICE))
    weight = four_bit((40, 128), DEVICE, 0)
    assert torch.equal(torch.tensor(NF4), four_bit_table("nf4"))
    codes = torch.randint(-127, 128, (40, 128), dtype=torch.int8, device=DEVICE)
    absmax = torch.rand(40, device=DEVICE) + 0.5
    (theirs,) = rivals.bitsandbytes_int8(x, codes, absmax).values()
    made, expected = theirs(), int8_linear.reference.int8_linear(x, codes, absmax)
    assert isinstance(made, torch.Tensor)
    allowed = (1e-3 if DEVICE.type == "cpu" else 3e-2) * float(expected.abs().max())
    torch.testing.assert_close(made.float(), expected.float(), rtol=0, atol=allowed)
    (theirs,) = rivals.bitsandbytes_four_bit(x, weight).values()
    made, expected = theirs(), nf4_linear.reference.nf4_linear(x, weight)
    assert isinstance(made, torch.Tensor)
    assert difference(made, expected) == ""


def test_one_script_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", DEVICE.type, "--out", str(tmp_path), "--budget-s", "60"]
    assert main("decode_plan", [decode_plan.case(1)], argv=arguments) == 0
    assert "| 1 rows (latency, warm) |" in capsys.readouterr().out
    found = json.loads(next(tmp_path.glob("*/decode_plan.json")).read_text())
    assert found["rows"][0]["verdict"] == "right"
    assert found["device"]["commit"]


def test_all_ops_without_time_are_all_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_here(["gelu", "decode_plan"], DEVICE, tmp_path, 0.0, log) == 0
    lines = ["begin gelu", "done gelu", "begin decode_plan", "done decode_plan"]
    assert log.read_text().splitlines() == lines
    folder = next(each for each in tmp_path.iterdir() if each.is_dir())
    rows = json.loads((folder / "gelu.json").read_text())["rows"]
    wanted = [case.name for case in importlib.import_module("benchmarks.gelu").cases()]
    assert [row["case"] for row in rows] == wanted
    assert {row["verdict"] for row in rows} == {"left out: no time left"}
