"""Kernel tests run compiled where there is a GPU, and in Triton's interpreter where there is none.

They need torch, numpy and pytest, and skip where Triton is not installed.
"""

import importlib.util
import os

import torch

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
elif not torch.cuda.is_available():
    # Before any kernel is imported: `triton.jit` looks at it once.
    os.environ.setdefault("TRITON_INTERPRET", "1")
