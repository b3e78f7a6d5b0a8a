"""Tools: which of them may be called, the grammar of a call, and reading it while it is written.

A call is generated as `{"name":"f","arguments":{...}}`: the arguments keep their own schema as it
is, and their text is a piece of what was generated.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from tiercel.api.grammar import json_schema
from tiercel.api.openai.schema import ChatRequest, NamedTool, TextFormat, Tool
from tiercel.errors import ToolError
from tiercel.wire.request import Grammar

_NO_CALL = "no_tool"
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_LITERAL = ("const", "enum", "default", "examples")  # their values are no schemas
_ANY_SHAPE = ("$ref", "allOf", "anyOf", "oneOf")
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")')
_ARGUMENTS = re.compile(r'\s*,\s*"arguments"\s*:\s*(?=\{)')
# What changes where an object ends: strings as a whole, and brackets outside of them.
_MARK = re.compile(r'["\\{}]')


@dataclass(frozen=True)
class ToolUse:
    """The tools that the answer may call; `no_call` is the name that stands for calling none."""

    tools: tuple[Tool, ...]
    no_call: str | None

    def grammar(self) -> Grammar:
        """One call of one of the tools. Raises ToolError for parameters that are no schema."""
        definitions = {
            str(place): _local(_parameters(tool), f"#/$defs/{place}")
            for place, tool in enumerate(self.tools)
        }
        shapes = [
            _object({"name": {"const": tool.function.name}, "arguments": {"$ref": f"#/$defs/{n}"}})
            for n, tool in enumerate(self.tools)
        ]
        if self.no_call is not None:
            shapes.append(_object({"name": {"const": self.no_call}}))
        return json_schema({"anyOf": shapes, "$defs": definitions})


def tool_use(request: ChatRequest) -> ToolUse | None:
    """What the request says of tools; None where the answer is text. Raises ToolError."""
    response_format = request.response_format
    if request.tools is not None and not isinstance(response_format, TextFormat | None):
        raise ToolError("Grammar and tools are mutually exclusive")
    tools = tuple(request.tools or ())
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise ToolError("two of the `tools` have the same name")
    choice = request.tool_choice or "auto"
    if isinstance(choice, NamedTool):
        wanted = choice.function.name
        if wanted not in names:
            raise ToolError(f"`tool_choice` names a tool that is not in `tools`: {wanted[:200]}")
        return ToolUse((tools[names.index(wanted)],), None)
    if choice == "required" and not tools:
        raise ToolError("`tool_choice` is `required`, but there are no `tools`")
    if choice == "none" or not tools:
        return None
    return ToolUse(tools, _other_than(names) if choice == "auto" else None)


class CallReader:
    """Fed with the text of a call in pieces, tells its name and passes its arguments on.

    The grammar has made sure of the form; a text of another form has no name.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.complete = False  # the arguments have been passed on to their end
        self.text = ""  # everything so far
        self._read = 0  # characters of the text that need not be looked at again
        self._depth = 0
        self._in_string = False
        self._in_arguments = False

    def feed(self, text: str) -> str:
        """The text of the arguments that has come with `text`."""
        self.text += text
        if self.name is None:
            head = _HEAD.match(self.text)
            if head is None:
                return ""
            self.name = json.loads(head[1])
            self._read = head.end()
        if not self._in_arguments:
            found = _ARGUMENTS.match(self.text, self._read)
            if found is None:
                return ""
            self._in_arguments = True
            self._read = found.end()
        return "" if self.complete else self._more()

    def _more(self) -> str:
        """The rest of the text, or of the arguments where they end in it."""
        start = place = self._read
        while mark := _MARK.search(self.text, place):
            place = mark.end()
            if mark[0] == "\\":  # always in a string; the next character belongs to it
                if place == len(self.text):
                    place = mark.start()
                    break
                place += 1
            elif mark[0] == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if mark[0] == "{" else -1
                self.complete = self._depth == 0
                if self.complete:
                    break
        else:
            place = len(self.text)
        self._read = place
        return self.text[start:place]


def _parameters(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments: always an object, and one without fields if not given."""
    parameters = tool.function.parameters
    if not parameters:
        return _NO_PARAMETERS
    if parameters.get("type", "object") != "object":
        raise ToolError(
            f"the `parameters` of the tool {tool.function.name} must be the schema of an object"
        )
    # As a part of another schema it has no address and no dialect of its own.
    schema = {key: value for key, value in parameters.items() if key not in ("$id", "$schema")}
    if "type" in schema or any(name in schema for name in _ANY_SHAPE):
        return schema
    return {"type": "object", **schema}


def _local(schema: Any, root: str) -> Any:
    """The schema as a part of another: its references to itself begin at `root`."""
    if isinstance(schema, list):
        return [_local(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    local: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            local[key] = root + value[1:]
        elif key in _BY_NAME and isinstance(value, dict):
            local[key] = {name: _local(part, root) for name, part in value.items()}
        else:
            local[key] = value if key in _LITERAL else _local(value, root)
    return local


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _other_than(names: list[str]) -> str:
    """The pseudo-function's name, which no tool of the request has."""
    name = _NO_CALL
    while name in names:
        name += "_"
    return name
