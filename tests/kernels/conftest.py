"""Kernel tests run compiled where there is a GPU, and in Triton's interpreter where there is none.

They need torch, numpy and pytest, and skip where Triton is not installed.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py", "benchmark*/test_*.py"]
elif not torch.cuda.is_available():
    # Before any kernel is imported: `triton.jit` looks at it once.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With a GPU these are its tests: `make gpu-test` selects them by their mark."""
    if torch.cuda.is_available():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.gpu)
