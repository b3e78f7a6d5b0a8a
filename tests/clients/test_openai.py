"""OpenAI's client against a real server, in what tests/api/openai does not ask it: completions,
models, the asynchronous client, tools from pydantic, raw answers, its own retries.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from support.edge_server import STORY, TOKENIZER, EdgeServer, say, until
from tiercel.bench.server import ServerProcess

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather?"}]
KEY = "any"


class Forecast(BaseModel):
    """Say what the sky will be."""

    sky: Literal["blue", "grey"]
    degrees: Literal[10, 20]


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_a_completion_whole_and_streamed(client: OpenAI) -> None:
    create = client.completions.create
    whole = create(model="m", prompt="Call me", max_tokens=12, temperature=0)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.completion_tokens == 12
    *chunks, last = create(
        model="m", prompt="Call me", max_tokens=12, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert last.choices == [] and last.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens


def test_several_prompts_with_everything(client: OpenAI) -> None:
    prompts = ["Call me", "The state of"]
    answer = client.completions.create(
        model="m", prompt=prompts, max_tokens=6, n=2, best_of=2, echo=True, logprobs=2, seed=4,
        stop=["zzzz"], presence_penalty=0.2, frequency_penalty=0.2, logit_bias={"270": -100},
        user="me",
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        assert choice.text.startswith(prompts[choice.index // 2])
        logprobs = choice.logprobs
        assert logprobs is not None and logprobs.tokens is not None
        assert "".join(logprobs.tokens) == choice.text
        assert logprobs.text_offset is not None and logprobs.text_offset[0] == 0
        assert logprobs.token_logprobs is not None and len(logprobs.tokens) == len(
            logprobs.token_logprobs
        )
        assert logprobs.top_logprobs is not None and logprobs.top_logprobs[-1]


def test_token_ids_are_a_prompt(client: OpenAI) -> None:
    create = client.completions.create
    said = create(model="m", prompt="Call me", max_tokens=6, temperature=0).choices[0].text
    ids = TOKENIZER.encode("Call me")
    for prompt in (ids, [ids]):
        answer = create(model="m", prompt=prompt, max_tokens=6, temperature=0)
        assert answer.choices[0].text == said


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such")


def test_a_tool_from_a_type(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(Forecast)
    for seed in range(3):
        answer = client.chat.completions.parse(
            model="m", messages=MESSAGES, tools=[tool], tool_choice="required", seed=seed
        )
        assert answer.choices[0].message.tool_calls is not None
        (call,) = answer.choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, Forecast)


def test_a_type_is_parsed_from_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="m", messages=MESSAGES, response_format=Forecast, seed=2
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Forecast)
    assert Forecast(**json.loads("".join(deltas))) == parsed


def test_a_cut_answer_is_told_by_the_client(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="m", messages=MESSAGES, response_format=Forecast, max_tokens=2
        )


def test_headers_are_there_for_those_who_look(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="m", messages=MESSAGES, max_tokens=3
    )
    assert raw.headers["x-generated-tokens"] == "3"
    assert raw.parse().usage is not None


def test_many_at_once(server: ServerProcess) -> None:
    async def main() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    model="m", messages=MESSAGES, stream=True, max_tokens=16, temperature=0
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one() for _ in range(6)))

    texts = asyncio.run(main())
    assert len(texts) == 6 and len(set(texts)) == 1


def test_its_retry_finds_the_place_free() -> None:
    with EdgeServer(say(STORY, gap_s=0.05), max_concurrent_requests=1) as edge:
        with edge.stream(max_new_tokens=10) as stream:
            pieces = stream.iter_raw()
            next(pieces)
            with OpenAI(base_url=f"{edge.url}/v1", api_key=KEY, max_retries=3) as client:
                answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=3)
            assert answer.choices[0].message.content
            assert edge.value("tgi_request_failure", err="overloaded") >= 1
        until(lambda: edge.engine.running == 0)
