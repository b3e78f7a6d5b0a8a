"""What loading takes at most, in a process of its own, with a model of 150 million parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.bitsandbytes_models import MODES
from tiercel.bench.checkpoint import RandomModel, make_random_checkpoint

# Python, torch and all that the worker imports have to fit into these. The libraries' own pages do
# not count: how many of them are mapped is the page cache's choice (100 to 575 MB have been seen).
ALLOWANCE = 300_000_000
LOAD = """
import json, sys
from pathlib import Path
from tiercel.wire.options import EngineOptions
from tiercel.worker.worker import Worker

def status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024

folder, quantize, double_quant = sys.argv[1], sys.argv[2] or None, sys.argv[3] == "True"
options = EngineOptions(
    model_path=folder, quantize=quantize, double_quant=double_quant, threads=1
)
worker = Worker(options)
before, files = status("VmRSS"), status("RssFile")
worker.load()
print(json.dumps({
    "weights": worker.weights_bytes, "before": before, "files": files,
    "resident": status("VmRSS"), "peak": status("VmHWM"),
}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_checkpoint(tmp_path_factory.mktemp("random") / "model")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("quantize", "double_quant"), [("", False), *MODES], ids=str)
def test_loading(checkpoint: Path, quantize: str, double_quant: bool) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(checkpoint), quantize, str(double_quant)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    shape = RandomModel().shapes()["transformer.word_embeddings.weight"]
    largest = 2 * shape[0] * shape[1]  # bfloat16
    print(f"{quantize or 'bfloat16'}, double {double_quant}: {found}, largest tensor {largest}")
    assert found["peak"] - found["files"] <= found["weights"] + 1.5 * largest + ALLOWANCE
    assert found["peak"] - found["before"] <= found["weights"] + 2 * largest
