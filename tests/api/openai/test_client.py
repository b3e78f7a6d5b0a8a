"""OpenAI's own Python client against the edge: what it makes of our answers, chunks and errors."""

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from support.chats import ARGUMENTS, CALL, TOOLS
from support.edge_server import STORY, EdgeServer, ids, say

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(server: EdgeServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_a_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m", messages=MESSAGES, logprobs=True, top_logprobs=2, n=2, seed=1, user="me",
        metadata={}, logit_bias={"5": 1}, stop=None, presence_penalty=0.1, service_tier="auto",
    )  # fmt: skip
    assert [choice.message.content for choice in answer.choices] == [STORY, STORY]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == len(ids(STORY)) + 1
    assert logprobs.content[0].bytes == list(b" a")
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.to_dict()["id"] == answer.id != ""


def test_a_stream(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == STORY
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ids(STORY)) + 1


def test_text_that_splits_lines_arrives_whole(server: EdgeServer, client: OpenAI) -> None:
    said = "a\u2028b\x85c\u2029d 😀\n\ndata: [DONE]\n\ne"
    server.engine.play = say(said, eos=True)
    stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == said


@pytest.mark.parametrize("tools", [False, True])
def test_the_helper_that_adds_up(server: EdgeServer, client: OpenAI, tools: bool) -> None:
    if tools:
        server.engine.play = say(CALL, eos=True)
    given = {"tools": TOOLS} if tools else {}
    with client.chat.completions.stream(model="m", messages=MESSAGES, **given) as stream:
        for _ in stream:
            pass
        (choice,) = stream.get_final_completion().choices
    assert choice.message.role == "assistant"
    if not tools:
        assert choice.message.content == STORY
        return
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", ARGUMENTS)
    assert call.id.count("call_") == 1
    assert choice.finish_reason == "tool_calls"


def test_a_call_and_its_result(server: EdgeServer, client: OpenAI) -> None:
    server.engine.play = say(CALL, eos=True)
    first = client.chat.completions.create(
        model="m", messages=MESSAGES, tools=TOOLS, tool_choice="required",
        parallel_tool_calls=False,
    )  # fmt: skip
    said = first.choices[0].message
    assert said.content is None and said.tool_calls is not None
    server.engine.play = say(STORY, eos=True)
    history = [*MESSAGES, said, {"role": "tool", "tool_call_id": said.tool_calls[0].id}]
    history[-1]["content"] = "sunny"
    second = client.chat.completions.create(model="m", messages=history)
    assert second.choices[0].message.content == STORY


def test_errors_have_their_classes(server: EdgeServer, client: OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(model="m", messages=MESSAGES, temperature=-1)
    assert refused.value.param == "temperature"
    assert refused.value.code == "invalid_value"
    assert "`temperature`" in refused.value.message
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="m", messages=MESSAGES, top_p=1.5, stream=True)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="m", input="x")


def test_a_full_server_is_a_rate_limit() -> None:
    with EdgeServer(say(STORY, gap_s=0.05), max_concurrent_requests=1) as server:
        with server.stream(max_new_tokens=100) as stream:
            pieces = stream.iter_raw()
            next(pieces)
            client = OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
            with client, pytest.raises(openai.RateLimitError) as refused:
                client.chat.completions.create(model="m", messages=MESSAGES)
        assert refused.value.code == "rate_limit_exceeded"
