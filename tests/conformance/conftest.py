"""The servers of the conformance suite, shared by all its files."""

from collections.abc import Iterator

import pytest

from support.conformance import Api, Servers
from support.conformance_collector import Collector
from support.conformance_reference import Reference


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Takes the spans of configuration B."""
    receiving = Collector()
    yield receiving
    receiving.stop()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Servers]:
    started = Servers(tmp_path_factory.mktemp("conformance"))
    started.more_flags["B"] = ("--otlp-endpoint", collector.endpoint)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def reference(servers: Servers) -> Reference:
    """What the model of configuration A has to say, by another implementation."""
    return Reference(servers.model())


@pytest.fixture
def api(servers: Servers) -> Api:
    """Configuration A: 64 input tokens, 128 in all, everything else default."""
    return servers["A"]


@pytest.fixture
def api_key_api(servers: Servers) -> Api:
    """Configuration B: with an API key; also with one listed origin, and a collector of spans."""
    return servers["B"]


@pytest.fixture
def prefill_api(servers: Servers) -> Api:
    """Configuration C: with prefill logprobs; also no prefix cache, and a loud watermark."""
    return servers["C"]


@pytest.fixture
def bare_api(servers: Servers) -> Api:
    """Configurations D and E: without grammars, and without a chat template."""
    return servers["DE"]


@pytest.fixture
def long_api(servers: Servers) -> Api:
    """Configurations F and G: one request at a time, 1,024 input tokens, 2,048 in all.

    Its tokenizer puts a special token in front of every text.
    """
    return servers["FG"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The statement whose test ends a server comes last: starting another takes seconds."""
    ending = [item for item in items if item.name.startswith("test_095")]
    items[:] = [item for item in items if item not in ending] + ending
