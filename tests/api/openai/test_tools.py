"""Which tools may be called, the grammar of a call, and reading a call however it is cut."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.chats import ARGUMENTS, CALL, CLOCK, HI, NO_CALL, TOOLS, WEATHER
from tiercel.api.body import parse
from tiercel.api.openai.schema import ChatRequest
from tiercel.api.openai.tools import CallReader, ToolUse, tool_use
from tiercel.errors import ToolError


def _use(**fields: Any) -> ToolUse | None:
    return tool_use(parse(json.dumps({"messages": HI, **fields}).encode(), ChatRequest))


def _schema(**fields: Any) -> dict[str, Any]:
    use = _use(**fields)
    assert use is not None
    grammar = use.grammar()
    assert grammar.kind == "json_schema"
    schema: dict[str, Any] = json.loads(grammar.text)
    return schema


def _tool(parameters: object, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def _names(use: ToolUse | None) -> list[str]:
    return [tool.function.name for tool in use.tools] if use else []


def test_which_tools_may_be_called() -> None:
    assert _use() is None
    assert _use(tools=[]) is None
    assert _use(tools=TOOLS, tool_choice="none") is None
    for choice in ("auto", None):
        use = _use(tools=TOOLS, tool_choice=choice)
        assert _names(use) == ["get_weather", "get_time"]
        assert use is not None and use.no_call == "no_tool"
    use = _use(tools=TOOLS, tool_choice="required")
    assert _names(use) == ["get_weather", "get_time"]
    assert use is not None and use.no_call is None
    use = _use(tools=TOOLS, tool_choice="get_time")
    assert _names(use) == ["get_time"]
    assert use is not None and use.no_call is None


def test_a_tool_may_be_called_like_the_pseudo_function() -> None:
    use = _use(tools=[_tool({}, "no_tool"), _tool({}, "no_tool_")])
    assert use is not None and use.no_call == "no_tool__"


@pytest.mark.parametrize("tools", [[], TOOLS])
@pytest.mark.parametrize("kind", ["json", "json_object", "regex"])
def test_a_format_and_tools_exclude_each_other(tools: list[Any], kind: str) -> None:
    with pytest.raises(ToolError) as refused:
        _use(tools=tools, response_format={"type": kind, "value": "{}"})
    assert str(refused.value) == "Tool error: Grammar and tools are mutually exclusive"


def test_plain_text_and_tools_do_not() -> None:
    assert _names(_use(tools=TOOLS, response_format={"type": "text"})) != []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": TOOLS, "tool_choice": "nope"}, "nope"),
        ({"tool_choice": "nope"}, "nope"),
        ({"tool_choice": "required"}, "required"),
        ({"tools": [CLOCK, CLOCK]}, "same name"),
    ],
)
def test_tools_that_contradict_each_other(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolError, match=said):
        _use(**fields)


def test_parameters_must_be_of_an_object() -> None:
    use = _use(tools=[_tool({"type": "array"}, "listed")])
    assert use is not None
    with pytest.raises(ToolError, match="listed"):
        use.grammar()


def test_the_grammar_is_one_call_with_its_own_schema() -> None:
    schema = _schema(tools=TOOLS, tool_choice="required")
    weather, clock = schema["anyOf"]
    assert weather["properties"]["name"] == {"const": "get_weather"}
    assert weather["required"] == ["name", "arguments"]
    assert weather["properties"]["arguments"] == {"$ref": "#/$defs/0"}
    assert schema["$defs"]["0"] == WEATHER["function"]["parameters"]
    assert clock["properties"]["name"] == {"const": "get_time"}
    empty = {"type": "object", "properties": {}, "additionalProperties": False}
    assert schema["$defs"]["1"] == empty
    with_none = _schema(tools=TOOLS)["anyOf"]
    assert with_none[:2] == [weather, clock]
    assert with_none[2]["required"] == ["name"]


def test_values_that_look_like_references_stay_as_they_are() -> None:
    value = {"$ref": "#/a"}
    reference = {"$ref": "#/$defs/const"}
    parameters = {
        "type": "object",
        "$defs": {"const": {"enum": [value]}},
        "properties": {"const": reference, "enum": {"const": value}},
    }
    schema = _schema(tools=[_tool(parameters)], tool_choice="required")["$defs"]["0"]
    assert schema["$defs"] == parameters["$defs"]
    assert schema["properties"] == {
        "const": {"$ref": "#/$defs/0/$defs/const"},
        "enum": {"const": value},
    }


def test_references_of_a_tool_stay_in_its_schema() -> None:
    parameters = {
        "$defs": {"Color": {"enum": ["red"]}},
        "type": "object",
        "properties": {
            "color": {"$ref": "#/$defs/Color"},
            "inner": {"type": "array", "items": {"$ref": "#"}},
            "$ref": {"type": "string"},
        },
    }
    schema = _schema(tools=[CLOCK, _tool(parameters)], tool_choice="f")
    properties = schema["$defs"]["0"]["properties"]
    assert properties["color"] == {"$ref": "#/$defs/0/$defs/Color"}
    assert properties["inner"]["items"] == {"$ref": "#/$defs/0"}
    assert properties["$ref"] == {"type": "string"}
    assert schema["$defs"]["0"]["$defs"]["Color"] == {"enum": ["red"]}


def _read(pieces: list[str]) -> tuple[CallReader, str]:
    reader = CallReader()
    return reader, "".join(reader.feed(piece) for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=12), st.sampled_from(["", " ", "\n", "  "]))
def test_a_call_is_read_however_it_is_cut(cuts: list[int], space: str) -> None:
    text = CALL.replace(",", f",{space}").replace(":", f":{space}") + space
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    reader, arguments = _read(pieces)
    assert reader.name == "get_weather"
    assert reader.complete
    assert json.loads(arguments) == json.loads(ARGUMENTS)
    assert reader.text == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.text(min_size=1),
    st.dictionaries(st.text(), json_values, max_size=4),
    st.booleans(),
    st.integers(1, 7),
)
def test_any_name_and_any_arguments(
    name: str, given_arguments: dict[str, Any], ascii_only: bool, size: int
) -> None:
    text = json.dumps({"name": name, "arguments": given_arguments}, ensure_ascii=ascii_only)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    reader, arguments = _read(pieces)
    assert (reader.name, reader.complete) == (name, True)
    assert json.loads(arguments) == given_arguments


def test_a_call_that_is_cut_off_is_not_complete() -> None:
    for length in range(len(CALL) - 1):
        reader, arguments = _read([CALL[:length]])
        assert not reader.complete
        assert ARGUMENTS.startswith(arguments)


def test_the_pseudo_function_is_known_by_its_name_alone() -> None:
    reader = CallReader()
    fed = 0
    while reader.name is None:
        reader.feed(NO_CALL[fed])
        fed += 1
    assert reader.name == "no_tool"
    assert fed == len(NO_CALL) - 1


def test_text_that_is_no_call_has_no_name() -> None:
    reader, arguments = _read(["[1,2]", " and more"])
    assert (reader.name, arguments, reader.complete) == (None, "", False)
