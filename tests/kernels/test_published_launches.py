"""`make kernels-compile` builds what serving a published model launches."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_launch_of_a_published_model_is_built() -> None:
    """In a process of its own, where Triton does not interpret."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / each) for each in ("kernels", "tests"))
    run = subprocess.run(
        [sys.executable, "-m", "support.published_launches"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    launched, built = set(found["launched"]), set(found["built"])
    assert len(launched) > 200
    assert len(built) == len(found["built"])  # no two cases are one binary
    missing = launched - built
    assert not missing, "\n".join(sorted(missing))
