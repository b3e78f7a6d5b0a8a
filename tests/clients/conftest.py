"""The interpreters of the client libraries, a real server, and edges over a scripted engine."""

import sys
from collections.abc import Iterator

import pytest

from support.client_process import CLIENTS_PYTHON, ClientProcess, Seen, make_clients
from support.clients import KEY, Ask, Way
from support.edge_server import STORY, EdgeServer, say
from support.server import make_server
from tiercel.api.auth import KeyRing, load_keys
from tiercel.bench.server import ServerProcess


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientProcess]:
    """The libraries of the server's own environment."""
    with ClientProcess(sys.executable, tmp_path_factory.mktemp("own")) as process:
        yield process


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientProcess]:
    """The libraries that `make clients` installs."""
    reason = make_clients()
    if reason is not None:
        pytest.skip(reason)
    with ClientProcess(CLIENTS_PYTHON, tmp_path_factory.mktemp("old")) as process:
        yield process


@pytest.fixture
def ask(request: pytest.FixtureRequest) -> Ask:
    """Ask one way: the way, the address, and what `Way.task` and `ClientProcess.ask` take."""

    def ask(
        way: Way,
        url: str,
        prompt: str = "Hi",
        max_tokens: int = 20,
        *,
        key: str | None = None,
        take: int | None = None,
        **parameters: object,
    ) -> Seen:
        process: ClientProcess = request.getfixturevalue(way.environment)
        task = way.task(prompt, max_tokens, **parameters)
        return process.ask(way.package, way.kind, url, way.method, key=key, take=take, **task)

    return ask


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server with eyas."""
    # float32: the same request gives the same answer whatever is in the prefix cache.
    flags = ("--dtype", "float32", "--enable-prefill-logprobs")
    with make_server(tmp_path_factory.mktemp("server"), None, *flags) as running:
        yield running


@pytest.fixture(scope="session")
def session_edge() -> Iterator[EdgeServer]:
    room = {"max_input_tokens": 900, "max_total_tokens": 2_000}
    with EdgeServer(keep_alive_s=0.03, **room) as server:
        yield server


@pytest.fixture
def edge(session_edge: EdgeServer) -> EdgeServer:
    """Says STORY unless the test writes something else; comments silence soon."""
    session_edge.engine.play = say(STORY)
    return session_edge


@pytest.fixture(scope="session")
def locked_edge() -> Iterator[EdgeServer]:
    """Wants KEY."""
    with EdgeServer(keys=KeyRing(load_keys([KEY], None))) as server:
        yield server


@pytest.fixture(scope="session")
def full_edge() -> Iterator[EdgeServer]:
    """Its one place is taken."""
    play = say(STORY, gap_s=0.5)
    with (
        EdgeServer(play, max_concurrent_requests=1, max_total_tokens=100_000) as server,
        server.stream(max_new_tokens=99_000) as stream,
    ):
        pieces = stream.iter_raw()  # the response is closed when nobody holds them
        next(pieces)
        server.engine.play = say(STORY)
        yield server
