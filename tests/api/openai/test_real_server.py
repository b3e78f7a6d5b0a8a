"""OpenAI's Python client against a real server with eyas: grammars decide what is said."""

import json
from collections.abc import Iterator
from typing import Literal

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from support.server import make_server
from tiercel import eyas
from tiercel.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather?"}]
CITIES = ["Paris", "Rome", 'a "quoted" town', "Zürich"]


def _tool(name: str, **properties: object) -> ChatCompletionToolParam:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = _tool(
    "get_weather", city={"enum": CITIES}, days={"type": "integer", "minimum": 0, "maximum": 9}
)
CLOCK = _tool("get_time", zone={"$ref": "#/$defs/Zone"})
CLOCK["function"]["parameters"]["$defs"] = {"Zone": {"enum": ["UTC", "local"]}}
TOOLS = [WEATHER, CLOCK]


class Report(BaseModel):
    city: Literal["Paris", "Rome"]
    sunny: bool
    degrees: Literal[10, 20, 30]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    # In bfloat16 a prompt that comes from the cache is rounded otherwise, and so may be the answer.
    server = make_server(tmp_path_factory.mktemp("openai"), None, "--dtype", "float32")
    with server, OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_a_greedy_chat_is_the_same_whole_and_streamed(client: OpenAI) -> None:
    create = client.chat.completions.create
    whole = create(
        model="m", messages=MESSAGES, temperature=0, max_tokens=24, logprobs=True, top_logprobs=3
    ).choices[0]
    stream = create(
        model="m", messages=MESSAGES, temperature=0, max_tokens=24, stream=True, logprobs=True,
        top_logprobs=3,
    )  # fmt: skip
    choices = [chunk.choices[0] for chunk in stream]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.message.content
    assert whole.logprobs is not None and whole.logprobs.content is not None
    streamed = [entry for choice in choices for entry in (choice.logprobs.content or [])]
    assert [entry.token for entry in streamed] == [e.token for e in whole.logprobs.content]
    for entry in whole.logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-6)


def test_a_seed_repeats_and_choices_differ(client: OpenAI) -> None:
    def texts(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="m", messages=MESSAGES, n=3, seed=seed, max_tokens=12
        )
        return [choice.message.content for choice in answer.choices]

    assert texts(5) == texts(5)
    assert len(set(texts(5))) > 1


def test_a_schema_is_parsed_by_the_client(client: OpenAI) -> None:
    for seed in range(3):
        answer = client.chat.completions.parse(
            model="m", messages=MESSAGES, response_format=Report, seed=seed
        )
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(answer.choices[0].message.parsed, Report)


def test_tgis_formats(client: OpenAI) -> None:
    schema = {"properties": {"sky": {"enum": ["blue", "grey"]}}, "required": ["sky"]}
    for given in (
        {"type": "json", "value": schema},
        {"type": "json_object", "value": json.dumps(schema)},
        {"type": "json_schema", "value": {"name": "sky", "schema": schema}},
    ):
        answer = client.chat.completions.create(
            model="m", messages=MESSAGES, extra_body={"response_format": given}
        )
        assert json.loads(answer.choices[0].message.content or "")["sky"] in ("blue", "grey")
    answer = client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        extra_body={"response_format": {"type": "regex", "value": "[ab]{3}"}},
    )
    content = answer.choices[0].message.content or ""
    assert len(content) == 3 and set(content) <= {"a", "b"}


@pytest.mark.parametrize("choice", ["required", "get_weather", "get_time"])
def test_a_forced_call(client: OpenAI, choice: str) -> None:
    for seed in range(3):
        answer = client.chat.completions.create(
            model="m", messages=MESSAGES, tools=TOOLS, seed=seed, extra_body={"tool_choice": choice}
        ).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None and answer.message.tool_calls
        _check(answer.message.tool_calls[0].function, choice)


def _check(function: object, choice: str) -> None:
    name, text = function.name, function.arguments
    assert choice in (name, "required")
    arguments = json.loads(text)
    if name == "get_weather":
        assert list(arguments) == ["city", "days"]
        assert arguments["city"] in CITIES and 0 <= arguments["days"] <= 9
    else:
        assert arguments in ({"zone": "UTC"}, {"zone": "local"})


def test_a_streamed_call_adds_up(client: OpenAI) -> None:
    for seed in range(3):
        with client.chat.completions.stream(
            model="m", messages=MESSAGES, tools=TOOLS, tool_choice="required", seed=seed
        ) as stream:
            for _ in stream:
                pass
            (choice,) = stream.get_final_completion().choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.role == "assistant" and choice.message.tool_calls
        _check(choice.message.tool_calls[0].function, "required")


@pytest.mark.parametrize("bias", [-100, 100])
def test_the_model_may_call_or_not(client: OpenAI, bias: int) -> None:
    """No function begins with an n, so that its tokens decide whether one is called."""
    tokenizer = Tokenizer.load(eyas.path())
    tokens = {str(tokenizer.encode(text)[0]): bias for text in ("n", "no", "no_")}
    for seed in range(3):
        answer = client.chat.completions.create(
            model="m", messages=MESSAGES, tools=TOOLS, seed=seed, max_tokens=60, logit_bias=tokens
        ).choices[0]
        if bias < 0:
            assert answer.finish_reason == "tool_calls" and answer.message.tool_calls
            _check(answer.message.tool_calls[0].function, "required")
        else:
            assert answer.finish_reason in ("stop", "length")
            assert answer.message.tool_calls is None and answer.message.content
