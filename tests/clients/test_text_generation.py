"""The `text-generation` client, TGI's own, against a real server: what it sends and what it reads.

Its `chat(stream=True)` reads no chunk without `tool_calls`, and not `[DONE]`: TGI's neither.
"""

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


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, old: ClientProcess, server: ServerProcess) -> Call:
    """Call a method of the client: its name, its first argument, its other arguments."""

    def call(method: str, *positional: Any, **arguments: Any) -> Seen:
        return old.ask(
            "text-generation", request.param, server.url, method, positional=positional,
            arguments=arguments,
        )  # fmt: skip

    return call


def test_a_text_whole_and_streamed(call: Call) -> None:
    ask = {"max_new_tokens": 10, "top_n_tokens": 2}
    whole = call("generate", "Call me", decoder_input_details=True, **ask).result()
    details = whole["details"]
    assert details["finish_reason"] == "length" and details["generated_tokens"] == 10
    assert [len(top) for top in details["top_tokens"]] == [2] * 10
    assert details["prefill"][0]["logprob"] is None
    events = call("generate_stream", "Call me", **ask).stream()
    for event, token in zip(events, details["tokens"], strict=True):
        assert (event["token"]["id"], event["token"]["text"]) == (token["id"], token["text"])
        assert event["token"]["logprob"] == pytest.approx(token["logprob"], abs=1e-4)
    assert [len(event["top_tokens"]) for event in events] == [2] * 10
    assert events[-1]["generated_text"] == whole["generated_text"]
    assert events[-1]["details"]["generated_tokens"] == 10


def test_its_optional_parameters(call: Call) -> None:
    answer = call(
        "generate", "Call me", do_sample=True, best_of=2, repetition_penalty=1.1,
        frequency_penalty=0.1, return_full_text=True, stop_sequences=["zzzz"], temperature=0.9,
        top_k=20, top_p=0.9, truncate=100, typical_p=0.9, watermark=True, max_new_tokens=6,
    ).result()  # fmt: skip
    assert answer["generated_text"].startswith("Call me")
    assert len(answer["details"]["best_of_sequences"]) == 1
    ask = {"seed": 7, "do_sample": True, "max_new_tokens": 6}
    first, second = (call("generate", "Call me", **ask).result() for _ in range(2))
    assert first["generated_text"] == second["generated_text"]
    assert first["details"]["seed"] == 7


def test_a_grammar(call: Call) -> None:
    grammar = {"type": "regex", "value": "[ab]{3}c"}
    answer = call("generate", "Call me", grammar=grammar).result()
    assert answer["generated_text"][3:] == "c"
    assert answer["details"]["finish_reason"] == "eos_token"


@pytest.mark.parametrize("method", ["generate", "generate_stream"])
def test_refusals(call: Call, method: str) -> None:
    for arguments, field in (
        ({"truncate": 100_000}, "truncate"),
        ({"stop_sequences": list("abcde")}, "stop"),
        ({"grammar": {"type": "regex", "value": "("}}, "grammar"),
    ):
        seen = call(method, "Call me", **arguments)
        assert (seen.error, field in seen.message) == ("ValidationError", True), seen.message


def test_a_chat(call: Call) -> None:
    answer = call("chat", MESSAGES, max_tokens=8, seed=1, logprobs=True, n=1).result()
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    assert answer["usage"]["completion_tokens"] == len(choice["logprobs"]["content"])


def test_a_tool_call(call: Call) -> None:
    parameters = {"properties": {"days": {"enum": [1, 2]}}, "required": ["days"]}
    function = {"name": "get_weather", "description": "-", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    answer = call("chat", MESSAGES, tools=tools, tool_choice="get_weather").result()
    (made,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(made["function"]["arguments"])["days"] in (1, 2)
