"""Nothing is compiled while serving: what a step launches was there after the start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint

ROOT = Path(__file__).parents[3]
PATHS = ("server", "kernels", "tests")


def launches(folder: Path, *options: str) -> dict[str, dict[str, int]]:
    """Of the start and of serving, in a process where Triton does not interpret."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / each) for each in PATHS)
    run = subprocess.run(
        [sys.executable, "-m", "support.serving_launches", str(folder), *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, dict[str, int]] = json.loads(run.stdout)
    return found


# The sizes of the rows are those where Triton or a kernel makes another binary: up to 16 and up to
# 32 rows of a quantized layer, and pointers that begin at an odd multiple of 8 bytes.
@pytest.mark.parametrize(
    ("variant", "quantize", "rows"),
    [
        ("7b", None, 40),
        ("rw-1b", None, 5),
        ("40b", "bitsandbytes", 40),
        ("7b", "bitsandbytes-nf4", 16),
    ],
)
def test_what_serving_launches_was_compiled_at_the_start(
    variant: str, quantize: str | None, rows: int, tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    heads = {"heads": 4, "head_dim": 64} if variant == "7b" else {}
    make_checkpoint(
        tmp_path, variant, dtype="bfloat16", max_positions=512, layers=1, tokenizer=True, **heads
    )
    options = [f"max_concurrent_requests={rows}"]
    options += [f"quantize={quantize}"] if quantize else []
    found = launches(tmp_path, *options)
    names = {each.split(";")[0] for each in found["serving"]}
    assert {"sample_kernel", "vocab_mask_kernel", "penalties_kernel", "count_kernel"} <= names
    assert quantize is None or any("product_kernel" in each for each in names)
    late = set(found["serving"]) - set(found["start"])
    assert not late, "\n".join(sorted(late))
