"""Programs that some tests need and a machine may lack."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """The path of a program beside this Python or on PATH.

    Skips where there is none; with REQUIRE_TOOLS=1 fails, so that nothing is left out unseen.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is not None:
        return found
    sentence = f"{name} is not installed"
    if os.environ.get("REQUIRE_TOOLS", "0") not in ("", "0"):
        pytest.fail(f"{sentence}, and REQUIRE_TOOLS asks for it")
    pytest.skip(sentence)
