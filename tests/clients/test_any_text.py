"""Whatever is generated arrives whole in every Python client, and comments between events do not.

huggingface_hub 1 and later splits lines as `str.splitlines` does, at U+0085, U+2028 and U+2029 too.
"""

import pytest

from support.awkward import AWKWARD
from support.clients import STREAMS, WAYS, Ask, Way, text
from support.edge_server import EdgeServer, ids, say

# The first use of the old clients' environment makes it.
pytestmark = pytest.mark.timeout(400)

HALF = ids("ab 😀")[:-1]  # a limit that cuts a character into halves
SLOW = " a story of"


@pytest.mark.parametrize("per_delta", [1, 3])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_awkward_text_arrives_whole(ask: Ask, edge: EdgeServer, way: Way, per_delta: int) -> None:
    edge.engine.play = say(AWKWARD, per_delta=per_delta)
    seen = ask(way, edge.url, AWKWARD, len(ids(AWKWARD)))
    assert text(seen) == AWKWARD
    if way.streams and way.details:
        assert seen.items[-1]["generated_text"] == AWKWARD


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_half_a_character_is_left_out(ask: Ask, edge: EdgeServer, way: Way) -> None:
    edge.engine.play = say("ab 😀")
    assert text(ask(way, edge.url, max_tokens=len(HALF))) == "ab "


@pytest.mark.parametrize("way", STREAMS, ids=str)
def test_comments_that_keep_the_connection_are_ignored(
    ask: Ask, edge: EdgeServer, way: Way
) -> None:
    edge.engine.play = say(SLOW, first_s=0.1, gap_s=0.04)
    assert text(ask(way, edge.url, max_tokens=len(ids(SLOW)))) == SLOW


def test_there_are_such_comments(edge: EdgeServer) -> None:
    edge.engine.play = say(SLOW, first_s=0.1, gap_s=0.04)
    with edge.stream(max_new_tokens=len(ids(SLOW))) as stream:
        assert stream.read().count(b":\n\n") > 3
