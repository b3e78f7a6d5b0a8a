"""One edge server per module, with room for a chat with tools."""

from collections.abc import Iterator

import pytest

from support.edge_server import STORY, TOKENIZER, EdgeServer, say


@pytest.fixture(scope="module")
def module_server() -> Iterator[EdgeServer]:
    with EdgeServer(
        max_input_tokens=600, max_total_tokens=800, vocab_size=TOKENIZER.vocab_size
    ) as server:
        yield server


@pytest.fixture
def server(module_server: EdgeServer) -> EdgeServer:
    module_server.engine.play = say(STORY, eos=True)
    return module_server
