"""`best_of`: several sequences for one answer, the likeliest of them wins."""

from collections.abc import AsyncIterator

import pytest

from support.edge_server import EdgeServer, ids, say, until
from support.scripted_engine import Play, speak
from tiercel.wire.messages import TokenDelta
from tiercel.wire.request import GenerationRequest


def _by_turn(*plays: Play) -> Play:
    """Another play for each sequence, in the order of their arrival."""
    left = list(plays)

    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        async for delta in left.pop(0)(request):
            yield delta

    return play


SEA, WAR = ids(" the sea"), ids(" a long war")


@pytest.mark.parametrize("likelier_first", [True, False])
def test_the_likelier_sequence_wins(server: EdgeServer, likelier_first: bool) -> None:
    good, bad = speak(SEA, logprob=-0.1), speak(WAR, logprob=-0.9)
    server.engine.play = _by_turn(good, bad) if likelier_first else _by_turn(bad, good)
    response = server.generate(best_of=2, do_sample=True, details=True, max_new_tokens=len(SEA))
    body = response.json()
    assert body["generated_text"] == " the sea"
    details = body["details"]
    assert list(details) == [
        "finish_reason", "generated_tokens", "seed", "prefill", "tokens", "best_of_sequences",
    ]  # fmt: skip
    (worse,) = details["best_of_sequences"]
    assert list(worse) == [
        "generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens",
    ]  # fmt: skip
    assert worse["generated_text"] in " a long war a long war"
    assert len(worse["tokens"]) == worse["generated_tokens"] == len(SEA)
    assert isinstance(worse["seed"], int) and worse["seed"] != details["seed"]
    assert response.headers["x-generated-tokens"] == str(details["generated_tokens"])


def test_the_first_wins_a_tie(server: EdgeServer) -> None:
    server.engine.play = _by_turn(speak(SEA), speak(WAR))
    body = server.generate(best_of=2, do_sample=True, max_new_tokens=len(SEA)).json()
    assert body == {"generated_text": " the sea"}


def test_top_tokens_and_full_text_of_all_sequences(server: EdgeServer) -> None:
    server.engine.play = say(" x")
    body = server.generate(
        "Hello", best_of=2, do_sample=True, details=True, top_n_tokens=2, max_new_tokens=3,
        return_full_text=True,
    ).json()  # fmt: skip
    (worse,) = body["details"]["best_of_sequences"]
    for each, text in ((body["details"], body["generated_text"]), (worse, worse["generated_text"])):
        assert text.startswith("Hello")
        assert [len(top) for top in each["top_tokens"]] == [2, 2, 2]


def test_it_is_one_request_in_the_metrics(server: EdgeServer) -> None:
    names = ("tgi_request_count", "tgi_request_success", "tgi_request_duration_count")
    before = [server.value(name) for name in names]
    tokens = server.value("tgi_request_generated_tokens_sum")
    assert server.generate(best_of=2, do_sample=True, max_new_tokens=4).status_code == 200
    assert [server.value(name) - old for name, old in zip(names, before, strict=True)] == [1, 1, 1]
    assert server.value("tgi_request_generated_tokens_sum") == tokens + 8


def test_one_failure_ends_all_sequences(server: EdgeServer) -> None:
    async def broken(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        yield TokenDelta(request.id, [], error="out of luck", error_type="generation")

    server.engine.play = _by_turn(say(" never ending", gap_s=0.05), broken)
    response = server.generate(best_of=2, do_sample=True, max_new_tokens=100)
    assert response.status_code == 424
    assert response.json()["error_type"] == "generation"
    until(lambda: server.engine.running == 0)


def test_it_takes_two_permits() -> None:
    with EdgeServer(max_concurrent_requests=1) as small:
        assert small.generate(best_of=2, do_sample=True).status_code == 429
        assert small.generate(max_new_tokens=1).status_code == 200
