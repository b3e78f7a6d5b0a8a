"""One edge server per module, over an engine that tells a story."""

from collections.abc import Iterator

import pytest

from support.edge_server import STORY, EdgeServer, say


@pytest.fixture(scope="module")
def module_server() -> Iterator[EdgeServer]:
    with EdgeServer(compute_type="1-test") as server:
        yield server


@pytest.fixture
def server(module_server: EdgeServer) -> EdgeServer:
    module_server.engine.play = say(STORY)
    return module_server
