"""huggingface_hub's clients against a real server: before and after 1.0, sync and async."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from support.client_process import ClientProcess, Seen
from tiercel.bench.server import ServerProcess

# The first use of the old clients' environment makes it.
pytestmark = pytest.mark.timeout(400)

Call = Callable[..., Seen]
MESSAGES = [{"role": "user", "content": "Who are you?"}]
SCHEMA = {"type": "object", "properties": {"sky": {"enum": ["blue", "grey"]}}, "required": ["sky"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(params=["own", "old"])
def process(request: pytest.FixtureRequest) -> ClientProcess:
    process: ClientProcess = request.getfixturevalue(request.param)
    return process


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, process: ClientProcess, server: ServerProcess) -> Call:
    """Call a method of the client: its name, its first argument, its other arguments."""

    def call(method: str, *positional: Any, **arguments: Any) -> Seen:
        settings = {"provider": "hf-inference"}  # by default it asks the hub which one has a URL
        return process.ask(
            "huggingface_hub", request.param, server.url, method, positional=positional,
            arguments=arguments, settings=settings,
        )  # fmt: skip

    return call


def test_a_text_whole_and_streamed(call: Call) -> None:
    ask = {"max_new_tokens": 12, "return_full_text": False}
    whole = call("text_generation", "Call me", **ask).result()
    assert "".join(call("text_generation", "Call me", stream=True, **ask).stream()) == whole
    events = call("text_generation", "Call me", stream=True, details=True, **ask).stream()
    assert [event["index"] for event in events] == list(range(1, 13))
    assert events[-1]["generated_text"] == whole
    assert events[-1]["details"]["finish_reason"] == "length"


def test_without_the_field_the_prompt_comes_back(call: Call) -> None:
    text = call("text_generation", "Call me", max_new_tokens=3).result()
    assert text.startswith("Call me") and len(text) > len("Call me")


def test_all_details(call: Call) -> None:
    answer = call(
        "text_generation", "Call me", details=True, decoder_input_details=True, best_of=2,
        do_sample=True, max_new_tokens=5, top_n_tokens=3, temperature=0.9, top_k=40, top_p=0.9,
        typical_p=0.95, repetition_penalty=1.1, frequency_penalty=0.1, truncate=200, watermark=True,
    ).result()  # fmt: skip
    details = answer["details"]
    assert details["generated_tokens"] == len(details["tokens"]) == len(details["top_tokens"]) == 5
    assert details["prefill"][0]["logprob"] is None and details["prefill"][1]["logprob"] < 0
    assert len(details["best_of_sequences"]) == 1
    assert details["seed"] is not None


def test_a_seed_repeats(call: Call) -> None:
    def text(seed: int) -> str:
        ask = {"do_sample": True, "seed": seed, "max_new_tokens": 12}
        answer: str = call("text_generation", "Call me", **ask).result()
        return answer

    assert text(1) == text(1) != text(2)


def test_the_stop_text_stays(call: Call) -> None:
    ask = {"max_new_tokens": 40, "return_full_text": False}
    whole = call("text_generation", "Call me", **ask).result()
    stop = whole[3:8]
    stopped = call("text_generation", "Call me", stop=[stop], details=True, **ask).result()
    assert stopped["details"]["finish_reason"] == "stop_sequence"
    assert stop in stopped["generated_text"] and whole.startswith(stopped["generated_text"])
    pieces = call("text_generation", "Call me", stop=[stop], stream=True, **ask).stream()
    assert "".join(pieces) == stopped["generated_text"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar(call: Call, stream: bool) -> None:
    grammar = {"type": "json", "value": SCHEMA}
    seen = call(
        "text_generation", "The sky", grammar=grammar, stream=stream, max_new_tokens=40,
        return_full_text=False,
    )  # fmt: skip
    text = "".join(seen.stream()).removesuffix("<|endoftext|>") if stream else seen.result()
    assert json.loads(text)["sky"] in ("blue", "grey")


def test_an_unknown_adapter(call: Call) -> None:
    seen = call("text_generation", "Call me", adapter_id="no/such")
    assert (seen.error, "no/such" in seen.message) == ("ValidationError", True)


def test_a_chat_whole_and_streamed(call: Call) -> None:
    ask = {"max_tokens": 12, "temperature": 0.0, "logprobs": True, "top_logprobs": 2}
    whole = call("chat_completion", MESSAGES, **ask).result()
    (choice,) = whole["choices"]
    assert choice["finish_reason"] in ("length", "stop")
    entries = choice["logprobs"]["content"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    usage = {"stream_options": {"include_usage": True}}
    *chunks, last = call("chat_completion", MESSAGES, stream=True, **usage, **ask).stream()
    assert last["choices"] == []
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][field] == whole["usage"][field]
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == choice["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]


def test_a_forced_tool_call(call: Call) -> None:
    ask = {
        "tools": [WEATHER],
        "tool_choice": {"function": {"name": "get_weather"}},
        "tool_prompt": "You may call:",
        "max_tokens": 60,
    }
    (choice,) = call("chat_completion", MESSAGES, **ask).result()["choices"]
    (made,) = choice["message"]["tool_calls"]
    assert made["function"]["name"] == "get_weather"
    assert json.loads(made["function"]["arguments"])["city"] in ("Paris", "Rome")
    chunks = call("chat_completion", MESSAGES, stream=True, **ask).stream()
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"]["tool_calls"] or []]
    arguments = "".join(part["function"]["arguments"] for part in parts)
    assert parts[0]["function"]["name"] == "get_weather"
    assert json.loads(arguments)["city"] in ("Paris", "Rome")


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"name": "sky", "schema": SCHEMA}},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json", "value": SCHEMA},
    ],
    ids=lambda value: value["type"],
)
def test_a_response_format(call: Call, response_format: dict[str, Any]) -> None:
    seen = call("chat_completion", MESSAGES, response_format=response_format, max_tokens=40)
    content = seen.result()["choices"][0]["message"]["content"]
    assert json.loads(content)["sky"] in ("blue", "grey")


def test_what_the_server_is(call: Call) -> None:
    info = call("get_endpoint_info").result()
    assert info["router"] == "text-generation-router"
    assert info["max_best_of"] == 2 and info["max_total_tokens"] > 0
    assert call("health_check").result() is True
