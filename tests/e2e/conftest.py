"""Models for the end-to-end tests, made once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiercel.bench.checkpoint import RandomModel, make_random_checkpoint


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Falcon that never ends its text, in float32, with a context of 2,048 tokens."""
    model = RandomModel(hidden_size=64, heads=4, layers=2, vocab_size=4_096, dtype="float32")
    return make_random_checkpoint(tmp_path_factory.mktemp("tiny") / "model", model)


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random Falcon whose steps take long enough to watch what happens between two of them."""
    model = RandomModel(hidden_size=1_024, heads=16, layers=12, vocab_size=4_096)
    folder = make_random_checkpoint(tmp_path_factory.mktemp("slow") / "model", model)
    yield folder
    shutil.rmtree(folder)  # 300 MB that pytest would keep for three sessions
