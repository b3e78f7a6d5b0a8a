"""`/v1/completions` and `/v1/models` over the real edge and a scripted engine."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from support.edge_server import TOKENIZER, EdgeServer, ids, parse_events, say, until
from support.scripted_engine import speak
from tiercel.wire.messages import TokenDelta
from tiercel.wire.request import GenerationRequest

WORDS = " a story of the sea"
LENGTH = len(ids(WORDS))
SPECIAL = ">>ANSWER<<"
SPECIAL_IDS = ids(SPECIAL)


@pytest.fixture(scope="module")
def module_server() -> Iterator[EdgeServer]:
    with EdgeServer(vocab_size=4096, compute_type="1-test") as server:
        yield server


@pytest.fixture
def server(module_server: EdgeServer) -> EdgeServer:
    module_server.engine.play = say(WORDS)
    module_server.engine.requests.clear()
    return module_server


def _complete(server: EdgeServer, prompt: Any = "Hello", /, **fields: Any) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": LENGTH, "temperature": 0, **fields}
    return server.post("/v1/completions", body)


def _answer(server: EdgeServer, prompt: Any = "Hello", /, **fields: Any) -> dict[str, Any]:
    response = _complete(server, prompt, **fields)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def _chunks(server: EdgeServer, prompt: Any = "Hello", /, **fields: Any) -> list[dict[str, Any]]:
    response = _complete(server, prompt, stream=True, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream"
    assert response.content.endswith(b"data: [DONE]\n\n")
    return parse_events(response.content[: -len(b"data: [DONE]\n\n")])


def _refused(server: EdgeServer, prompt: Any = "Hello", /, **fields: Any) -> dict[str, Any]:
    response = _complete(server, prompt, **fields)
    assert response.status_code == 422, response.text
    document = response.json()
    assert list(document["error"]) == ["message", "type", "param", "code"]
    error: dict[str, Any] = document["error"]
    return error


def test_the_answer_has_the_contracts_shape(server: EdgeServer) -> None:
    body = _answer(server)
    assert body["object"] == "text_completion" and body["model"] == "test/model"
    assert body["id"].startswith("cmpl-") and body["created"] > 1_700_000_000
    assert body["choices"] == [
        {"index": 0, "text": WORDS, "logprobs": None, "finish_reason": "length"}
    ]
    assert body["usage"] == {
        "prompt_tokens": len(ids("Hello")),
        "completion_tokens": LENGTH,
        "total_tokens": len(ids("Hello")) + LENGTH,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_headers_as_on_generate_but_for_the_compute_time(server: EdgeServer) -> None:
    headers = _complete(server, ["Hello", "é😀"]).headers
    assert headers["x-compute-characters"] == "7"
    assert headers["x-prompt-tokens"] == str(len(ids("Hello")) + len(ids("é😀")))
    assert headers["x-generated-tokens"] == str(2 * LENGTH)
    assert headers["x-compute-type"] == "1-test"
    assert "x-compute-time" not in headers


def test_a_string_and_an_array_of_it_are_the_same(server: EdgeServer) -> None:
    assert _answer(server)["choices"] == _answer(server, ["Hello"])["choices"]


def test_token_ids_are_the_prompt_as_they_are(server: EdgeServer) -> None:
    assert _answer(server, ids("Hello"))["usage"]["prompt_tokens"] == len(ids("Hello"))
    assert [request.token_ids for request in server.engine.requests] == [ids("Hello")]
    server.engine.requests.clear()
    body = _answer(server, [[1, 2, 3], [4, 5]])
    assert [request.token_ids for request in server.engine.requests] == [[1, 2, 3], [4, 5]]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]


def test_four_prompts_and_two_choices_each(server: EdgeServer) -> None:
    body = _answer(server, ["a", "b", "c", "d"], n=2, temperature=1, seed=5)
    assert [choice["index"] for choice in body["choices"]] == list(range(8))
    assert body["usage"]["prompt_tokens"] == 4
    assert body["usage"]["completion_tokens"] == 8 * LENGTH
    seeds = [request.sampling.seed for request in server.engine.requests]
    assert seeds == [5, 6] * 4


def test_best_of_answers_the_likeliest(server: EdgeServer) -> None:
    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        worse = request.sampling.seed == 8
        said = speak(ids(" war" if worse else " sea"), logprob=-0.9 if worse else -0.1)
        async for delta in said(request):
            yield delta

    server.engine.play = play
    body = _answer(server, seed=8, best_of=2, n=1, temperature=1, max_tokens=1)
    assert [choice["text"] for choice in body["choices"]] == [" sea"]
    assert body["usage"]["completion_tokens"] == 2  # of both


def test_echo_puts_the_prompt_in_front(server: EdgeServer) -> None:
    assert _answer(server, echo=True)["choices"][0]["text"] == "Hello" + WORDS
    assert _answer(server, ids("Hello"), echo=True)["choices"][0]["text"] == "Hello" + WORDS
    nothing = _answer(server, echo=True, max_tokens=0)
    assert nothing["choices"][0]["text"] == "Hello"
    assert nothing["usage"]["completion_tokens"] == 0


def test_logprobs_name_each_token_and_its_place(server: EdgeServer) -> None:
    (choice,) = _answer(server, logprobs=2)["choices"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == WORDS
    assert logprobs["token_logprobs"] == [-0.5] * LENGTH
    assert [len(top) for top in logprobs["top_logprobs"]] == [2] * LENGTH
    for text, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert WORDS[offset:].startswith(text)
    (plain,) = _answer(server, logprobs=0)["choices"]
    assert plain["logprobs"]["top_logprobs"] is None


def test_echoed_logprobs_are_those_of_the_prompt_too(server: EdgeServer) -> None:
    (choice,) = _answer(server, "Hello there", echo=True, logprobs=1, max_tokens=0)["choices"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"] == "Hello there"
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == [
        -float(place) for place in range(1, len(ids("Hello there")))
    ]
    (request,) = server.engine.requests
    assert request.prompt_logprobs and request.prompt_top_n == 1


def test_the_stop_string_is_not_in_the_text(server: EdgeServer) -> None:
    (choice,) = _answer(server, stop=" of", max_tokens=9, logprobs=0)["choices"]
    assert choice["text"] == " a story" and choice["finish_reason"] == "stop"
    assert "".join(choice["logprobs"]["tokens"]) == " a story"
    chunks = _chunks(server, stop=[" of the", "war"], max_tokens=9)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " a story"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stop", [SPECIAL, "\n" + SPECIAL, SPECIAL + " of", "story\n>>"])
def test_a_special_token_can_be_a_stop_string(server: EdgeServer, stop: str) -> None:
    """Chat models end their turns with one; it is in no text, and yet it ends the answer."""
    server.engine.play = speak([*ids(" a story\n"), *SPECIAL_IDS, *ids(" of the sea")])
    expected = " a story\n"[: -len(stop.partition(">>")[0]) or None]
    (choice,) = _answer(server, stop=stop, max_tokens=9)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
    chunks = _chunks(server, stop=stop, max_tokens=9)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stop", [" sea and", "none of it"])
def test_logprobs_of_a_stream_are_those_of_the_answer(server: EdgeServer, stop: str) -> None:
    """Past a special token, without a hidden stop string, and with characters of several tokens."""
    said = [*ids(" é😀"), *SPECIAL_IDS, *ids(" story of the sea and the ships")]
    server.engine.play = speak(said)
    fields = {"echo": True, "logprobs": 1, "max_tokens": len(said), "stop": stop}
    (choice,) = _answer(server, "a😀b", **fields)["choices"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    for text, at in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][at:].startswith(text)
    chunks = [chunk["choices"][0]["logprobs"] for chunk in _chunks(server, "a😀b", **fields)]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [each for chunk in chunks for each in chunk[name]] == logprobs[name]


def test_the_end_of_sequence_is_a_stop_without_text(server: EdgeServer) -> None:
    server.engine.play = say(" a story", eos=True)
    (choice,) = _answer(server, max_tokens=9)["choices"]
    assert choice["text"] == " a story" and choice["finish_reason"] == "stop"
    chunks = _chunks(server, max_tokens=9)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " a story"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_chunks_are_unfinished_until_the_last_one_of_a_prompt(server: EdgeServer) -> None:
    chunks = _chunks(server, ["Hello", "Bye"])
    assert all(list(chunk)[:2] == ["object", "id"] for chunk in chunks)
    for index in (0, 1):
        mine = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        *before, last = mine
        assert "".join(chunk["choices"][0]["text"] for chunk in mine) == WORDS
        assert all(chunk["choices"][0]["finish_reason"] == "" for chunk in before)
        assert not any("usage" in chunk for chunk in before)
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["usage"]["completion_tokens"] == LENGTH


def test_usage_of_the_whole_stream_when_asked_for(server: EdgeServer) -> None:
    chunks = _chunks(server, ["Hello", "Bye"], stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2 * LENGTH


def test_an_echo_and_logprobs_stream_too(server: EdgeServer) -> None:
    chunks = _chunks(server, "Hello there", echo=True, logprobs=1)
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == "Hello there" + WORDS
    tokens = [each for chunk in chunks for each in chunk["choices"][0]["logprobs"]["tokens"]]
    offsets = [each for chunk in chunks for each in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert "".join(tokens) == text
    assert all(text[at:].startswith(each) for each, at in zip(tokens, offsets, strict=True))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 200}, "n"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1000}, "prompt"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": 1.5, "stream": True}, "top_p"),
        ({"temperature": -1}, "temperature"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"4096": 1}}, "logit_bias"),
        ({"stop": list("abcde")}, "stop"),
        ({"max_tokens": "5"}, "max_tokens"),
    ],
)
def test_refused_values_name_their_field(
    server: EdgeServer, fields: dict[str, Any], param: str
) -> None:
    assert _refused(server, **fields)["param"] == param
    until(lambda: server.engine.running == 0)


@pytest.mark.parametrize("prompt", [[], 5, None, {"a": 1}, [[]], ["a", 1], [1, "a"], [4096], [-1]])
def test_prompts_that_are_none(server: EdgeServer, prompt: Any) -> None:
    assert "prompt" in _refused(server, prompt)["message"]


def test_a_suffix_and_a_fifth_prompt_are_refused(server: EdgeServer) -> None:
    response = _complete(server, suffix="x")
    assert response.status_code == 422
    assert response.json()["error_type"] == "suffix not supported"
    assert _complete(server, suffix=None).status_code == 200
    response = _complete(server, list("abcde"))
    assert response.status_code == 422
    assert response.json()["error_type"] == "batch size exceeded"
    assert "4" in response.json()["error"]["message"]


def test_penalties_and_biases_reach_the_engine(server: EdgeServer) -> None:
    _answer(
        server, frequency_penalty=0.5, presence_penalty=-1, logit_bias={"7": -100}, user="me"
    )  # fmt: skip
    sampling = server.engine.requests[0].sampling
    assert sampling.frequency_penalty == 0.0 and sampling.count_penalty == 0.5
    assert sampling.presence_penalty == -1.0
    assert sampling.logit_bias == [(7, -100.0)]


def test_a_failure_in_the_middle_of_a_stream_is_an_event(server: EdgeServer) -> None:
    async def broken(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        async for delta in say(WORDS)(request):
            yield delta
            break
        yield TokenDelta(request.id, [], error="out of luck", error_type="generation")

    server.engine.play = broken
    response = _complete(server, stream=True)
    assert response.status_code == 200
    *_, error, done = response.content.split(b"\n\n")[:-1]
    assert done == b"data: [DONE]"
    document = json.loads(error.removeprefix(b"data: "))
    assert document["error"]["http_status_code"] == 424
    assert "out of luck" in document["error"]["message"]


def test_a_failure_before_the_first_event_is_a_real_status(server: EdgeServer) -> None:
    async def broken(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        yield TokenDelta(request.id, [], error="out of luck", error_type="generation")

    server.engine.play = broken
    response = _complete(server, stream=True)
    assert response.status_code == 424
    assert response.json()["error"]["type"] == "server_error"


def test_one_request_in_the_metrics_however_many_prompts(server: EdgeServer) -> None:
    before = server.value("tgi_request_count"), server.value("tgi_request_success")
    _answer(server, ["a", "b"], n=2, temperature=1)
    after = server.value("tgi_request_count"), server.value("tgi_request_success")
    assert after == (before[0] + 1, before[1] + 1)


def test_the_models(server: EdgeServer) -> None:
    listed = server.http.get("/v1/models").json()
    (model,) = listed["data"]
    assert listed["object"] == "list"
    assert model == {
        "id": "test/model", "object": "model", "created": 0, "owned_by": "test/model",
    }  # fmt: skip
    assert server.http.get("/v1/models/test/model").json() == model
    unknown = server.http.get("/v1/models/gpt")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert "`test/model`" in unknown.json()["error"]["message"]
    assert TOKENIZER.vocab_size <= 4096


def test_headers_leave_before_a_slow_first_token() -> None:
    with EdgeServer(say(WORDS, first_s=0.6), keep_alive_s=0.1) as slow:
        body = {"prompt": "x", "max_tokens": 2, "stream": True}
        response = slow.post("/v1/completions", body)
        assert response.content.startswith(b":\n\n")
        _, done, behind = response.content.partition(b"data: [DONE]\n\n")
        assert done and not behind.replace(b":\n\n", b"")  # on a slow machine a comment may follow


def test_a_client_that_leaves_before_the_first_token_aborts() -> None:
    with EdgeServer(say(WORDS, first_s=30)) as slow:
        body = {"prompt": "x", "max_tokens": 2, "stream": True}
        with pytest.raises(httpx.ReadTimeout):
            slow.post("/v1/completions", body, timeout=0.3)
        until(lambda: slow.engine.running == 0)
        until(lambda: slow.value("tgi_request_failure", err="dropped") == 1)
