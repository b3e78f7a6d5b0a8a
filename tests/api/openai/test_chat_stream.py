"""Chats that are streamed: chunks, their ends, usage, and errors before and after the first one."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from support.chats import CHAT, HI, chat, chunks, message, refusal
from support.edge_server import EOS, STORY, EdgeServer, ids, parse_events, say, until
from support.scripted_engine import speak
from tiercel.wire.messages import Token, TokenDelta
from tiercel.wire.request import GenerationRequest


def _texts(documents: list[dict[str, Any]]) -> dict[int, str]:
    """What each choice said, after checking that each ended exactly once, at its end."""
    texts: dict[int, str] = defaultdict(str)
    ended: set[int] = set()
    for document in documents:
        for choice in document["choices"]:
            index = choice["index"]
            assert index not in ended
            texts[index] += choice["delta"]["content"]
            if choice["finish_reason"] is not None:
                ended.add(index)
    assert ended == set(texts)
    return dict(texts)


def test_chunks_have_the_contracts_shape(server: EdgeServer) -> None:
    documents = chunks(server, model="m", max_tokens=3)
    assert len(documents) == 3
    assert len({(document["id"], document["created"]) for document in documents}) == 1
    for document in documents:
        assert list(document) == [
            "object", "id", "created", "model", "system_fingerprint", "choices", "usage",
        ]  # fmt: skip
        assert document["object"] == "chat.completion.chunk"
        assert document["usage"] is None
        (choice,) = document["choices"]
        assert set(choice["delta"]) == {"role", "content"}
        assert choice["delta"]["role"] == "assistant"
    reasons = [document["choices"][0]["finish_reason"] for document in documents]
    assert reasons == [None, None, "length"]


def test_headers(server: EdgeServer) -> None:
    response = chat(server, stream=True, max_tokens=1)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-compute-characters"] == str(len("User: Hi\n\nAssistant:"))
    assert "x-prompt-tokens" not in response.headers


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 4}, {"stop": " the"}, {"stop": ["zzz"]}])
def test_the_stream_says_what_the_answer_says(server: EdgeServer, fields: dict[str, Any]) -> None:
    whole = message(server, **fields)
    documents = chunks(server, **fields)
    assert _texts(documents) == {0: whole["message"]["content"]}
    assert documents[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


def test_several_tokens_in_one_step(server: EdgeServer) -> None:
    server.engine.play = speak([*ids(STORY), EOS], per_delta=4)
    documents = chunks(server)
    assert len(documents) == len(ids(STORY)) + 1
    assert _texts(documents) == {0: STORY}


def test_usage_is_one_more_chunk(server: EdgeServer) -> None:
    documents = chunks(server, max_tokens=3, stream_options={"include_usage": True})
    *before, last = documents
    assert all(document["usage"] is None and document["choices"] for document in before)
    assert last["choices"] == []
    assert last["usage"] == chat(server, max_tokens=3).json()["usage"]


def test_n_choices_are_interleaved_and_each_ends_once(server: EdgeServer) -> None:
    documents = chunks(server, n=3, stream_options={"include_usage": True})
    assert _texts(documents) == {0: STORY, 1: STORY, 2: STORY}
    assert documents[-1]["usage"]["completion_tokens"] == 3 * (len(ids(STORY)) + 1)


def test_logprobs_come_with_their_tokens(server: EdgeServer) -> None:
    whole = message(server, logprobs=True, top_logprobs=2)["logprobs"]["content"]
    entries = []
    for document in chunks(server, logprobs=True, top_logprobs=2):
        (entry,) = document["choices"][0]["logprobs"]["content"]
        entries.append(entry)
    assert entries == whole


def test_text_that_looks_like_events_arrives_whole(server: EdgeServer) -> None:
    said = "\n\ndata: [DONE]\n\n\u2028\x85\u2029 😀\r\n"
    server.engine.play = say(said, eos=True)
    response = chat(server, stream=True)
    assert _texts(chunks(server)) == {0: said}
    assert not {"\u2028", "\x85", "\u2029", "\r"} & set(response.content.decode())


def test_the_role_comes_once_for_the_helper_that_adds_up(server: EdgeServer) -> None:
    body = {"messages": HI, "stream": True, "n": 2, "max_tokens": 3}
    headers = {"content-type": "application/json", "x-stainless-helper-method": "stream"}
    response = server.http.post(CHAT, content=json.dumps(body), headers=headers)
    documents = parse_events(response.content.removesuffix(b"data: [DONE]\n\n"))
    roles: dict[int, list[str]] = defaultdict(list)
    for document in documents:
        choice = document["choices"][0]
        roles[choice["index"]].append(choice["delta"].get("role"))
    assert dict(roles) == {0: ["assistant", None, None], 1: ["assistant", None, None]}


async def _fails_after_two(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
    for token_id in ids(STORY)[:2]:
        yield TokenDelta(request.id, [Token(token_id, -0.5, [], [])], None)
        await asyncio.sleep(0.05)
    yield TokenDelta(request.id, [], None, error="the device is gone", error_type="generation")


async def _fails_at_once(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
    yield TokenDelta(request.id, [], None, error="the device is gone", error_type="generation")


def test_an_error_before_the_first_chunk_has_a_status(server: EdgeServer) -> None:
    server.engine.play = _fails_at_once
    for stream in (False, True):
        refused = refusal(chat(server, stream=stream), 424)
        assert "the device is gone" in refused["message"]
        assert refused["type"] == "server_error"
        assert refused["error_type"] == "generation"


def test_an_error_after_the_first_chunk_is_an_event_with_its_code(server: EdgeServer) -> None:
    server.engine.play = _fails_after_two
    response = chat(server, stream=True)
    assert response.status_code == 200
    *said, error = parse_events(response.content.removesuffix(b"data: [DONE]\n\n"))
    assert len(said) == 2
    assert set(error) == {"error", "error_type"}
    assert error["error"]["http_status_code"] == 424
    assert "the device is gone" in error["error"]["message"]
    assert response.content.endswith(b"\n\ndata: [DONE]\n\n")


def test_closing_a_stream_ends_all_its_choices() -> None:
    with EdgeServer(say(STORY, gap_s=0.02), max_total_tokens=800) as server:
        body = json.dumps({"messages": HI, "n": 2, "stream": True})
        headers = {"content-type": "application/json"}
        with server.http.stream("POST", CHAT, content=body, headers=headers) as response:
            pieces = response.iter_raw()
            next(pieces)
            assert server.engine.running == 2
        until(lambda: server.engine.running == 0)
        until(lambda: server.value("tgi_request_failure", err="dropped") == 1)
        assert chat(server, max_tokens=1).status_code == 200


def test_leaving_before_the_first_chunk_ends_it_too() -> None:
    with EdgeServer(say(STORY, eos=True)) as server:
        chat(server)  # renders the first chat, which takes longest
        server.engine.play = say(STORY, first_s=20)
        with pytest.raises(httpx.ReadTimeout):
            server.post(CHAT, {"messages": HI, "stream": True}, timeout=0.5)
        until(lambda: len(server.engine.aborted) == 1)
        until(lambda: server.value("tgi_request_failure", err="dropped") == 1)
