"""One Chromium, one real server with eyas and one scripted edge for all tests of the playground."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from support.chromium import Chromium, Page, find_chromium
from support.edge_server import STORY, EdgeServer, say
from support.server import make_server
from tiercel.bench.server import ServerProcess

OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed: `make browser` does that on Debian and Ubuntu")
    with Chromium(program, tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(scope="session")
def eyas_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """float32, so that the same request gives the same answer whatever is in the prefix cache."""
    folder = tmp_path_factory.mktemp("server")
    with make_server(folder, None, "--dtype", "float32") as server:
        yield server


@pytest.fixture(scope="module")
def module_edge() -> Iterator[EdgeServer]:
    with EdgeServer(max_input_tokens=1_000, max_total_tokens=4_096) as server:
        yield server


@pytest.fixture
def edge(module_edge: EdgeServer) -> EdgeServer:
    module_edge.engine.play = say(STORY)
    return module_edge


@pytest.fixture
def open_page(browser: Chromium) -> Iterator[OpenPage]:
    """Opens the playground of a server. Afterwards nothing may have gone wrong unseen.

    That is: no error or warning in the console, no violation of the content-security policy, and
    no request to anybody but the server. A test that provokes some empties `page.problems`.
    """
    opened: list[tuple[Page, str]] = []
    with ExitStack() as stack:

        def opener(url: str, **device: object) -> Page:
            page = stack.enter_context(browser.page(**device))  # type: ignore[arg-type]
            opened.append((page, url))
            page.open(f"{url}/playground")
            page.until("document.getElementById('model').textContent")
            return page

        yield opener
        for page, url in opened:
            assert page.problems == []
            assert [each for each in page.requests if not each.startswith(url)] == []
