"""The bounds against figures that were worked out by hand for published cards and models."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from tiercel_kernels.benchmark.bounds import (
    SHAPES,
    Limits,
    decode,
    kv_bytes,
    kv_tokens,
    op_s,
    prefill_s,
    resident_bytes,
    step_bytes,
)

KERNELS = Path(__file__).parents[3] / "kernels"
A10G = Limits(0.60e12, 70e12)
A100 = Limits(2.0e12, 312e12)
H100 = Limits(3.0e12, 800e12)
H200 = Limits(4.3e12, 790e12)


def test_sizes_of_the_published_models() -> None:
    billions = {name: round(shape.block_params / 1e9, 3) for name, shape in SHAPES.items()}
    assert billions == {
        "falcon-7b": 6.626,
        "falcon-40b": 40.769,
        "falcon-180b": 177.587,
        "falcon-11b": 10.570,
        "falcon-rw-1b": 1.208,
    }
    assert SHAPES["falcon-7b"].head_params == pytest.approx(295.5e6, rel=1e-3)
    assert {name: kv_bytes(shape) for name, shape in SHAPES.items()} == {
        "falcon-7b": 8_192,
        "falcon-40b": 122_880,
        "falcon-180b": 163_840,
        "falcon-11b": 245_760,
        "falcon-rw-1b": 196_608,
    }
    assert SHAPES["falcon-180b"].group == 29


@pytest.mark.parametrize(
    ("name", "dtype", "read_gb", "resident_gb"),
    [
        ("falcon-7b", "bfloat16", 13.84, 13.84),
        ("falcon-7b", "nf4-double", 4.01, 4.01),
        ("falcon-11b", "bfloat16", 21.67, 22.20),
        ("falcon-40b", "int8", 41.87, 41.87),
        ("falcon-7b", "float32", 27.69, 27.69),
    ],
)
def test_weights(name: str, dtype: str, read_gb: float, resident_gb: float) -> None:
    assert step_bytes(SHAPES[name], dtype) / 1e9 == pytest.approx(read_gb, abs=0.006)
    assert resident_bytes(SHAPES[name], dtype) / 1e9 == pytest.approx(resident_gb, abs=0.006)


@pytest.mark.parametrize(
    ("name", "dtype", "card", "batch", "context", "ms", "serial_ms"),
    [
        ("falcon-7b", "bfloat16", H100, 1, 1024, 4.62, 4.62),
        ("falcon-7b", "bfloat16", H200, 256, 1024, 4.68, 5.0),
        ("falcon-7b", "bfloat16", A10G, 256, 1024, 52.80, 52.80),
        ("falcon-40b", "int8", A100, 256, 1024, 69.43, 83.9),
        ("falcon-11b", "bfloat16", H200, 256, 1024, 20.02, 22.0),
        ("falcon-rw-1b", "bfloat16", A100, 256, 1024, 27.08, 27.9),
        ("falcon-180b", "nf4-double", H200, 64, 1024, 29.32, 31.4),
    ],
)
def test_decode(
    name: str, dtype: str, card: Limits, batch: int, context: int, ms: float, serial_ms: float
) -> None:
    bound = decode(SHAPES[name], card, batch, context, dtype=dtype)
    assert bound.overlap_s * 1e3 == pytest.approx(ms, rel=0.003)
    assert bound.serial_s * 1e3 == pytest.approx(serial_ms, rel=0.03)
    assert bound.overlap_s <= bound.serial_s <= bound.memory_s + bound.arithmetic_s


def test_ranks_share_weights_but_a_single_kv_head_is_on_all_of_them() -> None:
    seven, forty = SHAPES["falcon-7b"], SHAPES["falcon-40b"]
    both = decode(forty, H100, 1, 1024, ranks=2)
    assert both.memory_s == pytest.approx(decode(forty, H100, 1, 1024).memory_s / 2)
    one, two = (decode(seven, H100, 256, 8192, ranks=ranks).memory_s for ranks in (1, 2))
    cache_s = 256 * 8192 * kv_bytes(seven) / H100.bandwidth
    assert two == pytest.approx((one - cache_s) / 2 + cache_s)


@pytest.mark.parametrize(
    ("name", "tokens", "card", "ms"),
    [
        ("falcon-7b", 2048, H100, 35.5),
        ("falcon-7b", 128, H100, 4.6),  # reading the weights takes longer
        ("falcon-7b", 8192, A100, 410.5),
        ("falcon-40b", 2048, H200, 216.6),
        ("falcon-180b", 512, A10G, 2606.8),
    ],
)
def test_prefill(name: str, tokens: int, card: Limits, ms: float) -> None:
    assert prefill_s(SHAPES[name], card, tokens) * 1e3 == pytest.approx(ms, rel=0.01)


def test_prefill_in_chunks_multiplies_as_much_as_the_whole_but_for_the_heads_logits() -> None:
    seven = SHAPES["falcon-7b"]
    slow = Limits(math.inf, 1e12)
    whole = prefill_s(seven, slow, 2048)
    parts = sum(prefill_s(seven, slow, 512, past) for past in range(0, 2048, 512))
    assert parts - whole == pytest.approx(3 * 2 * seven.head_params / 1e12)


@pytest.mark.parametrize(
    ("name", "dtype", "mib", "ranks", "tokens"),
    [
        ("falcon-7b", "bfloat16", 23028, 1, 869e3),
        ("falcon-7b", "bfloat16", 81559, 1, 7.76e6),
        ("falcon-40b", "bfloat16", 81559, 2, 588e3),
        ("falcon-180b", "nf4-double", 143771, 1, 268e3),
    ],
)
def test_room_for_keys_and_values(
    name: str, dtype: str, mib: int, ranks: int, tokens: float
) -> None:
    room = kv_tokens(SHAPES[name], mib * 2**20, dtype=dtype, ranks=ranks)
    assert room == pytest.approx(tokens, rel=0.01)


def test_fewer_layers_take_less_but_the_head_stays() -> None:
    forty = SHAPES["falcon-40b"]
    four, eight = (decode(forty.with_layers(n), H200, 1, 1024).overlap_s for n in (4, 8))
    per_layer = (eight - four) / 4
    assert four + 56 * per_layer == pytest.approx(decode(forty, H200, 1, 1024).overlap_s)


def test_an_op_takes_what_takes_longer() -> None:
    assert op_s(3e12, 0, H100) == pytest.approx(1.0)
    assert op_s(3e9, 1600e12, H100) == pytest.approx(2.0)


def test_no_torch_is_needed() -> None:
    code = "import sys, tiercel_kernels.benchmark.bounds; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(KERNELS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "False"
