"""Streams of a real server: early, equal to the whole answer, as long as asked for, repeatable."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client import client_of, generate, ids, open_stream, run, stream
from support.server import make_server
from tiercel.bench.client import RUNNING, Client

PROMPT = "It is a truth universally acknowledged, that a long prompt fills more than one block: "


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Client]:
    with make_server(tmp_path_factory.mktemp("server"), tiny_model) as server:
        yield client_of(server)


def test_the_first_event_arrives_while_tokens_are_still_computed(client: Client) -> None:
    async def watch() -> tuple[float, int]:
        exchange = await open_stream(client, PROMPT, max_new_tokens=1_000)
        await exchange.tokens(1)
        running = (await client.metrics())[RUNNING]
        return running, len(ids(await exchange.reply()))

    assert run(watch()) == (1, 1_000)


def test_a_stream_equals_the_whole_answer(client: Client) -> None:
    async def ask() -> None:
        reply = await stream(client, PROMPT, max_new_tokens=60, details=True)
        whole = await generate(client, PROMPT, max_new_tokens=60, details=True)
        events = [event.data for event in reply.events()]
        assert [event["index"] for event in events] == list(range(1, 61))
        assert [event["token"] for event in events] == whole["details"]["tokens"]
        assert events[-1]["generated_text"] == whole["generated_text"]
        assert "".join(event["token"]["text"] for event in events) == whole["generated_text"]
        assert events[-1]["details"]["finish_reason"] == whole["details"]["finish_reason"]
        assert events[-1]["details"]["finish_reason"] == "length"
        assert events[-1]["details"]["generated_tokens"] == 60
        times = reply.token_times()
        assert all(earlier <= later for earlier, later in itertools.pairwise(times))
        assert times[-1] > times[0]

    run(ask())


def test_1500_new_tokens_in_a_context_of_2048(client: Client) -> None:
    reply = run(stream(client, PROMPT, max_new_tokens=1_500, details=True))
    assert len(ids(reply)) == 1_500
    details = reply.events()[-1].data["details"]
    assert details["generated_tokens"] == 1_500
    assert details["finish_reason"] == "length"


def test_a_repeated_prompt_hits_the_cache_and_answers_the_same(client: Client) -> None:
    async def ask() -> None:
        parameters = {"max_new_tokens": 30, "seed": 7, "temperature": 0.9}
        first = ids(await stream(client, PROMPT * 8, **parameters))
        before = await client.metrics()
        again = [ids(await stream(client, PROMPT * 8, **parameters)) for _ in range(3)]
        after = await client.metrics()
        assert again == [first] * 3
        hits = "tiercel_prefix_cache_hit_tokens_total"
        assert after[hits] - before[hits] >= 3 * 16

    run(ask())


def test_continuing_an_answer_reuses_its_blocks(client: Client) -> None:
    """Outputs are cached like prompts: a chat's next turn starts where the last one ended."""

    async def ask() -> None:
        answer = await generate(client, PROMPT * 4, max_new_tokens=64)
        before = await client.metrics()
        tokens = (await client.post("/tokenize", {"inputs": PROMPT * 4})).json()
        await generate(client, PROMPT * 4 + answer["generated_text"], max_new_tokens=4)
        after = await client.metrics()
        hits = "tiercel_prefix_cache_hit_tokens_total"
        assert after[hits] - before[hits] >= len(tokens) // 16 * 16

    run(ask())
