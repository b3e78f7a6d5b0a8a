"""bitsandbytes, imported where it is needed, since it takes 200 MB, and with nothing from a hub.

On CPUs with AVX512_BF16 its import downloads a kernel from a repository of its own choice and runs
it, if the package `kernels` is there (bitsandbytes 0.50, backends/cpu/ops.py). Nothing here needs
that kernel, and no code is loaded that is not installed.
"""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HUB_PACKAGE = "kernels"


def import_bitsandbytes() -> Any:
    """The package. Raises ImportError without it."""
    with without_hub_kernels():
        return importlib.import_module("bitsandbytes")


@contextmanager
def without_hub_kernels() -> Iterator[None]:
    """`import kernels` fails in here, and nobody warns of it."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    loaded = sys.modules.get(HUB_PACKAGE)
    logger.setLevel(logging.ERROR)
    sys.modules[HUB_PACKAGE] = None  # type: ignore[assignment]  # what `import` takes for missing
    try:
        yield
    finally:
        logger.setLevel(level)
        if loaded is None:
            del sys.modules[HUB_PACKAGE]
        else:
            sys.modules[HUB_PACKAGE] = loaded
