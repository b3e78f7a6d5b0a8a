"""Programs that some tests need and a machine may lack."""

import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """The path of a program beside this Python or on PATH; skips where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found
