"""Bodies of chats: what each field can hold, in OpenAI's and in TGI's spelling."""

import json
from typing import Any

import pytest

from support.chats import HI, TOOLS
from tiercel.api.body import BodyRefused, parse
from tiercel.api.openai.schema import (
    ChatRequest,
    JsonFormat,
    JsonSchemaFormat,
    NamedTool,
    RegexFormat,
)


def _parsed(**fields: Any) -> ChatRequest:
    return parse(json.dumps({"messages": HI, **fields}).encode(), ChatRequest)


def _refusal(**fields: Any) -> BodyRefused:
    with pytest.raises(BodyRefused) as refused:
        _parsed(**fields)
    assert refused.value.status == 422
    return refused.value


def _content(content: object) -> str | None:
    return _parsed(messages=[{"role": "user", "content": content}]).messages[0].content


def test_parts_are_joined_without_a_separator() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b c"}]
    assert _content(parts) == "ab c" == _content("ab c")
    assert _content([]) == ""


def test_every_field_of_openai_takes_null() -> None:
    names = (
        "model", "frequency_penalty", "presence_penalty", "temperature", "top_p", "seed", "stop",
        "max_tokens", "max_completion_tokens", "n", "logit_bias", "stream", "stream_options",
        "logprobs", "top_logprobs", "tools", "tool_choice", "tool_prompt", "response_format",
        "top_k", "typical_p", "repetition_penalty", "user",
    )  # fmt: skip
    body = _parsed(**dict.fromkeys(names))
    assert body.choices == 1
    assert not body.include_usage
    assert body.max_new_tokens is None
    assert all(getattr(body, name) is None for name in names if name in ChatRequest.model_fields)


def test_stop_is_a_string_or_a_list() -> None:
    assert _parsed(stop="x").stop == ["x"]
    assert _parsed(stop=["x", "y"]).stop == ["x", "y"]


def test_both_names_of_the_limit() -> None:
    assert _parsed(max_tokens=3).max_new_tokens == 3
    assert _parsed(max_completion_tokens=4).max_new_tokens == 4
    assert _parsed(max_completion_tokens=None, max_tokens=3).max_new_tokens == 3
    assert "`max_completion_tokens`" in str(_refusal(max_tokens=3, max_completion_tokens=3))


def test_integers_are_floats_and_seeds_may_be_negative() -> None:
    body = _parsed(temperature=1, top_p=1, seed=-(2**63))
    assert (body.temperature, body.top_p, body.seed) == (1.0, 1.0, -(2**63))
    assert _parsed(seed=2**64 - 1).seed == 2**64 - 1


def test_an_array_as_logit_bias_is_ignored_as_by_tgi() -> None:
    assert _parsed(logit_bias=[1.0, 2.0]).logit_bias == {}
    assert _parsed(logit_bias={"17": -100}).logit_bias == {"17": -100.0}


def test_tool_choice_in_all_its_forms() -> None:
    for name in ("auto", "none", "required"):
        assert _parsed(tools=TOOLS, tool_choice=name).tool_choice == name
    for given in (
        "f",
        {"function": {"name": "f"}},
        {"type": "function", "function": {"name": "f"}},
    ):
        choice = _parsed(tools=TOOLS, tool_choice=given).tool_choice
        assert isinstance(choice, NamedTool) and choice.function.name == "f"


def test_a_tool_has_parameters_or_arguments() -> None:
    for name in ("parameters", "arguments"):
        tool = {"type": "function", "function": {"name": "f", name: {"type": "object"}}}
        (parsed,) = _parsed(tools=[tool]).tools or []
        assert parsed.function.parameters == {"type": "object"}


def test_response_formats_of_both_families() -> None:
    schema = {"properties": {"a": {}}}
    for given in ({"type": "json", "value": schema}, {"type": "json_object", "value": schema}):
        parsed = _parsed(response_format=given).response_format
        assert isinstance(parsed, JsonFormat) and parsed.value == schema
    parsed = _parsed(response_format={"type": "json_object"}).response_format
    assert isinstance(parsed, JsonFormat) and parsed.value is None
    for key in ("value", "json_schema"):
        given = {"type": "json_schema", key: {"name": "n", "strict": True, "schema": schema}}
        parsed = _parsed(response_format=given).response_format
        assert isinstance(parsed, JsonSchemaFormat) and parsed.json_schema.schema_ == schema
    parsed = _parsed(response_format={"type": "regex", "value": "a+"}).response_format
    assert isinstance(parsed, RegexFormat) and parsed.value == "a+"


def test_arguments_of_earlier_calls_are_text_or_objects() -> None:
    for arguments in ('{"a":"é"}', {"a": "é"}):
        call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
        (said,) = _parsed(messages=[{"role": "assistant", "tool_calls": [call]}]).messages
        assert said.tool_calls is not None
        assert said.tool_calls[0].function.arguments == '{"a":"é"}'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content",
        ),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content"),
        ({"messages": [{"role": "x" * 65, "content": "x"}]}, "messages.0.role"),
        ({"messages": HI * 4097}, "messages"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"seed": 2**64}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x"] * 2_049}, "stop"),
        ({"stop": ["x" * 4097]}, "stop.0"),
        ({"stream": "true"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"n": -1}, "n"),
        ({"logit_bias": 5}, "logit_bias"),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5"),
        ({"logit_bias": {str(n): 0 for n in range(301)}}, "logit_bias"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"function": {"name": ""}}]}, "tools.0.function.name"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": {"function": {}}}, "tool_choice"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": ["x"]}}, "response_format"),
        ({"response_format": {"type": "regex"}}, "response_format.regex.value"),
        ({"response_format": {"type": "json", "value": 5}}, "response_format.json.value"),
    ],
)
def test_wrong_types_name_the_field(fields: dict[str, Any], param: str) -> None:
    refused = _refusal(**fields)
    if param.startswith("tools.0.function.param"):
        assert refused.param and refused.param.startswith("tools.0.function")
    else:
        assert refused.param == param
    assert len(str(refused)) < 400


def test_a_refusal_does_not_repeat_the_value() -> None:
    for fields in (
        {"tool_choice": {"secret": 1}},
        {"response_format": {"type": "secret"}},
        {"messages": [{"role": "user", "content": [{"type": "secret"}]}]},
    ):
        assert "secret" not in str(_refusal(**fields))
