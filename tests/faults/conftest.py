"""One real server for the tests that attack it, with a small random model behind it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.server import make_server
from tiercel.bench.checkpoint import RandomModel, make_random_checkpoint
from tiercel.bench.server import ServerProcess


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = RandomModel(hidden_size=64, heads=4, layers=2, vocab_size=4_096, dtype="float32")
    return make_random_checkpoint(tmp_path_factory.mktemp("small") / "model", model)


@pytest.fixture(scope="session")
def attacked(
    tmp_path_factory: pytest.TempPathFactory, small_model: Path
) -> Iterator[ServerProcess]:
    """A server with default limits. Still healthy, and the same process, when the tests end."""
    with make_server(tmp_path_factory.mktemp("attacked"), small_model) as server:
        pid = server.pid
        yield server
        assert server.health() == 200
        assert server.pid == pid
        assert "Traceback" not in server.log()
        assert server.stop() == 0
