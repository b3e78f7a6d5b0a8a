"""bitsandbytes runs no code but what is installed, whatever the CPU and whatever else is there."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiercel.quantization.bitsandbytes_package import without_hub_kernels

KERNELS = """
import pathlib
def get_kernel(*arguments, **options):
    pathlib.Path(__file__).with_name("asked").write_text(repr(arguments))
    raise RuntimeError("nothing is to be had")
"""
IMPORT = """
import logging
logging.basicConfig(level=logging.INFO)
from tiercel.quantization.bitsandbytes_package import import_bitsandbytes
assert import_bitsandbytes().nn.Linear4bit
import kernels
assert kernels.get_kernel
"""


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder with a package `kernels` that notes what it was asked for."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "__init__.py").write_text(KERNELS, encoding="utf-8")
    return tmp_path


def test_it_asks_no_hub_for_kernels(hub: Path) -> None:
    """On a CPU with AVX512_BF16 a plain `import bitsandbytes` does, and warns; elsewhere not."""
    path = os.pathsep.join([str(hub), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (hub / "kernels" / "asked").exists()
    assert "WARNING" not in done.stderr


def test_the_package_is_only_out_of_sight_for_a_while(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """True on every CPU."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    monkeypatch.syspath_prepend(hub)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    with without_hub_kernels(), pytest.raises(ImportError):
        import kernels
    import kernels

    monkeypatch.delitem(sys.modules, "kernels")
    assert kernels.get_kernel
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    with pytest.raises(ZeroDivisionError), without_hub_kernels():
        raise ZeroDivisionError
    assert sys.modules["kernels"] is kernels
    assert logger.level == level
