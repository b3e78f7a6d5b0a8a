"""Statements 110 to 114 of the contract's section 11: response formats and tools in a chat.

On configuration G: descriptions of tools are long in bytes, and the model takes its time.
"""

import json
import re
from typing import Any

import jsonschema
import pytest

from support.conformance import Api, refused_openai

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["Eyas", "Tiercel"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tame": {"type": "boolean"},
    },
    "required": ["name", "age", "tame"],
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": "call_falcon", "description": "Calls it back", "parameters": SCHEMA},
    },
    {
        "type": "function",
        "function": {
            "name": "feed_falcon",
            "parameters": {
                "type": "object",
                "properties": {"grams": {"enum": [10, 50]}},
                "required": ["grams"],
            },
        },
    },
]
FEED = {"type": "function", "function": {"name": "feed_falcon"}}


def ask(api: Api, **fields: Any) -> dict[str, Any]:
    """The only choice of a chat."""
    body = {"messages": HELLO, "temperature": 0, "max_tokens": 500, **fields}
    (choice,) = api.ask(CHAT, body)["choices"]
    return dict(choice)


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json", "value": SCHEMA},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json_schema", "value": {"name": "falcon", "schema": SCHEMA}},
        {"type": "json_schema", "value": {"schema": SCHEMA}},
    ],
)
def test_110_json_and_regex_formats(long_api: Api, response_format: dict[str, Any]) -> None:
    choice = ask(long_api, response_format=response_format)
    assert choice["finish_reason"] == "stop"
    document = json.loads(choice["message"]["content"])
    jsonschema.validate(document, SCHEMA)
    pattern = "(falcon|tiercel) number [0-9]{3}"
    text = ask(long_api, response_format={"type": "regex", "value": pattern})["message"]["content"]
    assert re.fullmatch(pattern, text)


def test_111_a_format_and_tools_exclude_each_other(long_api: Api) -> None:
    """A deliberate divergence: the error is in OpenAI's shape, TGI's type beside it."""
    response_format = {"type": "json", "value": SCHEMA}
    for tools in ([], TOOLS):
        body = {"messages": HELLO, "response_format": response_format, "tools": tools}
        message = refused_openai(long_api.post(CHAT, body), 422, "tool_error")
        assert message == "Tool error: Grammar and tools are mutually exclusive"


@pytest.mark.parametrize("tool_choice", ["feed_falcon", FEED])
def test_112_a_named_tool_is_called(long_api: Api, tool_choice: object) -> None:
    """A deliberate divergence: the error is in OpenAI's shape, TGI's type beside it."""
    message = ask(long_api, tools=TOOLS, tool_choice=tool_choice)["message"]
    assert set(message) == {"role", "tool_calls"}
    (call,) = message["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "feed_falcon"
    assert type(call["function"]["arguments"]) is str
    assert json.loads(call["function"]["arguments"])["grams"] in (10, 50)
    body = {"messages": HELLO, "tools": TOOLS, "tool_choice": "fly_falcon"}
    refused_openai(long_api.post(CHAT, body), 422, "tool_error", "fly_falcon")


def test_113_no_tool_is_called(long_api: Api) -> None:
    choice = ask(long_api, tools=TOOLS, tool_choice="none", max_tokens=8)
    assert set(choice["message"]) == {"role", "content"}
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("tool_choice", ["call_falcon", "required"])
def test_114_a_streamed_tool_call(long_api: Api, tool_choice: str) -> None:
    body = {
        "messages": HELLO, "temperature": 0, "max_tokens": 500, "stream": True,
        "tools": TOOLS, "tool_choice": tool_choice,
    }  # fmt: skip
    events = long_api.stream(CHAT, body)
    assert events.done
    deltas = [choice["delta"] for event in events.data for choice in event["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
    assert {call["index"] for call in calls} == {0}
    (name,) = [call["function"]["name"] for call in calls if call["function"].get("name")]
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}
    assert name in ([tool_choice] if tool_choice != "required" else schemas)
    arguments = "".join(call["function"].get("arguments") or "" for call in calls)
    jsonschema.validate(json.loads(arguments), schemas[name])
