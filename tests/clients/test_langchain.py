"""langchain-huggingface against a real server: the endpoint, and a chat model over it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from support.client_process import ClientProcess, Seen
from tiercel.bench.server import ServerProcess

# The first use of the old clients' environment makes it.
pytestmark = pytest.mark.timeout(400)

Call = Callable[..., Seen]
GREEDY = {"temperature": None, "top_p": None, "typical_p": None, "max_new_tokens": 40}
WEATHER = {
    "name": "get_weather",
    "description": "The weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
    },
}


@pytest.fixture(params=["", "a"], ids=["sync", "async"])
def call(request: pytest.FixtureRequest, old: ClientProcess, server: ServerProcess) -> Call:
    """Call a method by its name without an `a`."""

    def call(
        method: str, prompt: str, arguments: dict[str, Any] | None = None, **task: Any
    ) -> Seen:
        return old.ask(
            "langchain-huggingface", "async" if request.param else "sync", server.url,
            request.param + method, positional=[prompt], arguments=arguments or {}, **task,
        )  # fmt: skip

    return call


def test_its_defaults_are_taken(call: Call) -> None:
    assert call("invoke", "Call me", settings={"max_new_tokens": 8, "seed": 1}).result()


def test_a_text_whole_and_streamed(call: Call) -> None:
    whole = call("invoke", "Call me", settings=GREEDY).result()
    assert call("invoke", "Call me", settings={**GREEDY, "streaming": True}).result() == whole
    pieces = call("stream", "Call me", settings=GREEDY).stream()
    assert len(pieces) > 10 and "".join(pieces) == whole


def test_it_takes_the_stop_text_off(call: Call) -> None:
    """It does so itself, and only where the text ends with it: the server has to leave it on."""
    whole = call("invoke", "Call me", settings=GREEDY).result()
    stop = whole.split()[2]  # a word, so that it ends with a token
    expected = whole[: whole.index(stop)]
    for streaming in (False, True):
        settings = {**GREEDY, "streaming": streaming}
        assert call("invoke", "Call me", {"stop": [stop]}, settings=settings).result() == expected
    settings = {**GREEDY, "stop_sequences": [stop]}
    assert call("invoke", "Call me", settings=settings).result() == expected


def test_a_chat_whole_and_streamed(call: Call) -> None:
    settings = {"max_new_tokens": 12, "temperature": 0.5}
    seed = {"seed": 3}  # a chat does not send the endpoint's
    message = call("invoke", "Who are you?", seed, chat=True, settings=settings).result()
    assert message["content"]
    assert message["usage_metadata"]["output_tokens"] <= 12
    chunks = call("stream", "Who are you?", seed, chat=True, settings=settings).stream()
    assert "".join(chunk["content"] for chunk in chunks) == message["content"]


def test_a_tool_call(call: Call) -> None:
    tool = {"type": "function", "function": WEATHER}
    arguments = {"tools": [tool], "tool_choice": {"function": {"name": "get_weather"}}}
    settings = {"max_new_tokens": 60}
    message = call("invoke", "Weather?", arguments, chat=True, settings=settings).result()
    (made,) = message["tool_calls"]
    assert made["name"] == "get_weather" and made["args"]["city"] in ("Paris", "Rome")
    assert json.loads(message["additional_kwargs"]["tool_calls"][0]["function"]["arguments"])
