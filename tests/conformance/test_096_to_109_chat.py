"""Statements 96 to 109 of the contract's section 11: `/v1/chat/completions`, templates."""

import time
from typing import Any

import pytest

from support.conformance import Api, refused, refused_openai, used
from support.conformance_events import Events

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
COUNT = [{"role": "user", "content": "<count>"}]
BYE = [{"role": "user", "content": "<bye>"}]


def ask(api: Api, messages: object = None, **fields: Any) -> dict[str, Any]:
    """A chat completion of a few greedy tokens, unless told otherwise."""
    body = {"messages": messages or HELLO, "max_tokens": 8, "temperature": 0, **fields}
    return dict(api.ask(CHAT, body))


def say(api: Api, messages: object = None, **fields: Any) -> str:
    """Its content."""
    (choice,) = ask(api, messages, **fields)["choices"]
    return str(choice["message"]["content"])


def chunks(api: Api, messages: object = None, **fields: Any) -> Events:
    body = {"messages": messages or HELLO, "max_tokens": 8, "temperature": 0, **fields}
    return api.stream(CHAT, {**body, "stream": True})


def rendered(api: Api, messages: object) -> str:
    return str(api.ask("/chat_tokenize", {"messages": messages})["templated_text"])


def test_096_a_chat_completion(api: Api) -> None:
    answer = ask(api)
    assert answer["object"] == "chat.completion"
    assert abs(answer["created"] - time.time()) < 60
    assert answer["system_fingerprint"]
    assert type(answer["id"]) is str
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert type(choice["message"]["content"]) is str
    usage = answer["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["prompt_tokens"] == len(api.tokenize(rendered(api, HELLO)))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_097_any_model_name_is_accepted(api: Api) -> None:
    served = api.ask_get("/info")["model_id"]
    assert ask(api)["model"] == served
    assert ask(api, model="tgi")["model"] == served
    for name in ("dummy", "gpt-4o", "nobody/nothing"):
        assert ask(api, model=name)["model"] == name
        assert say(api, model=name) == say(api)


def test_098_temperature_zero_is_greedy(api: Api) -> None:
    assert say(api) == say(api)
    sampled = {"messages": HELLO, "max_tokens": 20}
    texts = [api.ask(CHAT, sampled)["choices"][0]["message"]["content"] for _ in range(3)]
    assert len(set(texts)) > 1
    seeded = [
        api.ask(CHAT, {**sampled, "seed": 11})["choices"][0]["message"]["content"] for _ in range(3)
    ]
    assert len(set(seeded)) == 1


def test_099_two_names_of_one_limit(api: Api) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        body = {"messages": HELLO, "temperature": 0, name: 5}
        assert api.ask(CHAT, body)["usage"]["completion_tokens"] == 5
    both = api.post(CHAT, {"messages": HELLO, "max_tokens": 5, "max_completion_tokens": 5})
    message = refused_openai(both, 422, "validation")
    assert "max_tokens" in message or "max_completion_tokens" in message


def test_100_why_a_chat_ends(api: Api) -> None:
    """A deliberate divergence: the stop text is left out, and the reason is OpenAI's `stop`."""
    (stopped,) = ask(api, COUNT, stop=["x"], max_tokens=20)["choices"]
    assert stopped["message"]["content"] == " one two three four si"
    assert stopped["finish_reason"] == "stop"
    assert chunks(api, COUNT, stop=["x"], max_tokens=20).content == " one two three four si"
    (ended,) = ask(api, BYE)["choices"]
    assert (ended["message"]["content"], ended["finish_reason"]) == (" farewell", "stop")
    (cut,) = ask(api)["choices"]
    assert cut["finish_reason"] == "length"


def test_101_logprobs_of_a_chat(api: Api) -> None:
    answer = ask(api, logprobs=True, top_logprobs=2)
    (choice,) = answer["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    for entry in content:
        assert set(entry) >= {"token", "logprob", "top_logprobs"}
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 2
        best, second = entry["top_logprobs"]
        assert {"token", "logprob"} <= set(best)
        assert best["logprob"] >= second["logprob"]
        assert (best["token"], best["logprob"]) == (entry["token"], entry["logprob"])
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    (plain,) = ask(api)["choices"]
    assert plain["logprobs"] is None


@pytest.mark.parametrize("messages", [HELLO, BYE])
def test_102_chunks_of_a_chat(api: Api, messages: object) -> None:
    events = chunks(api, messages)
    assert events.done
    for event in events.data:
        assert event["object"] == "chat.completion.chunk"
        (choice,) = event["choices"]
        assert choice["index"] == 0
        assert choice["delta"]["role"] == "assistant"
        assert type(choice["delta"]["content"]) is str
        assert event["usage"] is None
    reasons = [event["choices"][0]["finish_reason"] for event in events.data]
    assert [reason for reason in reasons if reason is not None] == [reasons[-1]]
    assert reasons[-1] == ("length" if messages is HELLO else "stop")


def test_103_usage_of_a_stream(api: Api) -> None:
    *others, last = chunks(api, stream_options={"include_usage": True}).data
    assert last["choices"] == []
    assert used(last) == used(ask(api))
    assert {event["usage"] for event in others} == {None}
    assert len(others) == len(chunks(api).data)
    assert others[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("messages", [HELLO, COUNT, BYE])
def test_104_a_stream_has_the_content_of_the_answer(api: Api, messages: object) -> None:
    assert chunks(api, messages, max_tokens=30).content == say(api, messages, max_tokens=30)


def test_105_content_in_parts(api: Api) -> None:
    parts = [{"type": "text", "text": text} for text in ("Hel", "lo, ", "you")]
    in_parts = {"messages": [{"role": "user", "content": parts}]}
    whole = {"messages": [{"role": "user", "content": "Hello, you"}]}
    assert api.ask("/chat_tokenize", in_parts) == api.ask("/chat_tokenize", whole)
    assert say(api, in_parts["messages"]) == say(api, whole["messages"])


def test_106_an_answer_is_continued(api: Api) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Well then, I"}]
    text = rendered(api, messages)
    assert text == "u:Hello\na:Well then, I"
    assert rendered(api, HELLO) == "u:Hello\na:"
    spaced = [*HELLO, {"role": "assistant", "content": "Well then, I  "}]
    assert rendered(api, spaced) == text
    assert say(api, messages) == api.generate(text, max_new_tokens=8)["generated_text"]


def test_107_without_a_chat_template(bare_api: Api) -> None:
    """A deliberate divergence: the error is in OpenAI's shape, TGI's type beside it."""
    for stream in (False, True):
        response = bare_api.post(CHAT, {"messages": HELLO, "max_tokens": 2, "stream": stream})
        message = refused_openai(response, 422, "template_error")
        assert message == "Template error: template not found"


def test_108_a_template_that_refuses(api: Api) -> None:
    """A deliberate divergence: the error is in OpenAI's shape, TGI's type beside it."""
    messages = [*HELLO, {"role": "banned", "content": "Hello"}]
    for stream in (False, True):
        response = api.post(CHAT, {"messages": messages, "stream": stream})
        message = refused_openai(response, 422, "template_error", "nobody is called banned")
        assert message.startswith("Template error: ")
    tokenized = api.post("/chat_tokenize", {"messages": messages})
    refused(tokenized, 422, "template_error", "nobody is called banned")


def test_109_a_wrong_value_in_a_chat_stream(api: Api) -> None:
    """A deliberate divergence: a real 422, because the stream has not begun."""
    body = {"messages": HELLO, "top_p": 1.5, "max_tokens": 4}
    for stream in (False, True):
        response = api.post(CHAT, {**body, "stream": stream})
        refused_openai(response, 422, "validation", "`top_p`")
