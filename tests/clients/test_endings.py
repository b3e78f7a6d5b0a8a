"""How requests end early, in every Python client: refused, too many, failed, given up by callers.

A refusal is the exception that the client's own users catch.
"""

import re
from collections.abc import AsyncIterator

import pytest

from support.clients import BY_TYPE, KEY, STREAMS, WAYS, Ask, Way
from support.edge_server import STORY, EdgeServer, ids, until
from support.scripted_engine import Play
from tiercel.bench.server import ServerProcess
from tiercel.wire.messages import Token, TokenDelta
from tiercel.wire.request import GenerationRequest

# The first use of the old clients' environment makes it.
pytestmark = pytest.mark.timeout(400)


def fail(after: int) -> Play:
    """A sequence that the engine gives up after so many tokens."""

    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        for token_id in ids(STORY)[:after]:
            yield TokenDelta(request.id, [Token(token_id, -0.5)])
        yield TokenDelta(request.id, [], error="a bit flipped", error_type="generation")

    return play


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_value_out_of_its_limits(ask: Ask, edge: EdgeServer, way: Way) -> None:
    seen = ask(way, edge.url, temperature=-1.0)
    assert seen.error == way.error("validation")
    if seen.error != "ClientResponseError":  # it has no body
        assert "`temperature`" in seen.message


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_full_server(ask: Ask, full_edge: EdgeServer, way: Way) -> None:
    seen = ask(way, full_edge.url)
    assert seen.error == way.error("overloaded")
    if seen.error in BY_TYPE.values():
        assert "Model is overloaded" in seen.message


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_keys(ask: Ask, locked_edge: EdgeServer, way: Way) -> None:
    assert ask(way, locked_edge.url, key=KEY).error is None
    seen = ask(way, locked_edge.url, key="Wrong")
    assert seen.error == way.unauthorized
    if way.package in ("openai", "huggingface_hub") and seen.error != "TypeError":
        assert "401" in seen.message


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_engine_that_fails(ask: Ask, edge: EdgeServer, way: Way) -> None:
    edge.engine.play = fail(3)
    seen = ask(way, edge.url)
    if not way.streams:
        assert seen.error == way.error("generation")
        return
    assert seen.error == ("APIError" if way.package == "openai" else "GenerationError")
    assert "a bit flipped" in seen.message
    assert len(seen.items) == 3  # what had been said before is the caller's


@pytest.mark.parametrize("way", STREAMS, ids=str)
def test_closing_early_frees_the_slot(ask: Ask, server: ServerProcess, way: Way) -> None:
    before = sample(server, 'tiercel_requests_cancelled_total{stage="decode"}')
    # Seeded, since a drawn chat may end with its first token.
    seen = ask(way, server.url, "Call me", 900, take=3, seed=1)
    assert len(seen.stream()) == 3
    until(lambda: sample(server, 'tiercel_requests_cancelled_total{stage="decode"}') == before + 1)
    until(lambda: sample(server, "tgi_batch_current_size") == 0)


def sample(server: ServerProcess, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.get("/metrics")[1], re.M)
    assert found
    return float(found[1])
