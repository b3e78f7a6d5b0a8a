"""The body of `/v1/chat/completions`, in OpenAI's and TGI's spelling. Answers: `chat_schema.py`."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tiercel.api.grammar import MAX_GRAMMAR_CHARACTERS
from tiercel.api.openai.fields import SamplingFields
from tiercel.api.schema import STRICT, Name, Text, UInt32

MAX_MESSAGES = 4_096
MAX_PARTS = 4_096
MAX_TOOLS = 128  # OpenAI's limit
_PART_TYPES = ("text", "input_text", "output_text")


class TextPart(BaseModel):
    """One part of a message's content. There is no other kind: the model reads text only."""

    type: Literal["text"]
    text: Text


def _joined(value: object) -> object:
    """Parts as one text, without a separator."""
    if not isinstance(value, list):
        return value
    if len(value) > MAX_PARTS:
        raise PydanticCustomError("parts", f"A message may have at most {MAX_PARTS} parts")
    return "".join(map(_part_text, value))


def _part_text(part: object) -> str:
    if isinstance(part, dict):
        text = part.get("refusal" if part.get("type") == "refusal" else "text")
        if isinstance(text, str) and part.get("type") in (*_PART_TYPES, "refusal"):
            return text
    raise PydanticCustomError(
        "part",
        'A part of a message must be an object with `type` "text" and a string `text`: '
        "the model reads nothing else",
    )


Parts = Annotated[list[TextPart], Field(max_length=MAX_PARTS)]
Content = Annotated[Text, BeforeValidator(_joined, json_schema_input_type=Text | Parts)]


def _written(value: object) -> object:
    """Some clients send the arguments as the object they were."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return value


class CalledFunction(BaseModel):
    """A function that was called earlier. `arguments` is a JSON text."""

    model_config = STRICT

    name: Name
    arguments: Annotated[
        Text, BeforeValidator(_written, json_schema_input_type=Text | dict[str, Any])
    ] = ""


class ToolCall(BaseModel):
    """A call that an earlier answer made."""

    model_config = STRICT

    id: Name | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """One message. Whether its role may stand at its place is the chat template's to say."""

    model_config = STRICT

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("message", "A message needs `content` or `tool_calls`")
        return self


class FunctionDefinition(BaseModel):
    """A function the model may call. `parameters` is the JSON schema of its arguments."""

    model_config = STRICT

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Text | None = None
    parameters: Annotated[
        dict[str, Any] | None, Field(validation_alias=AliasChoices("parameters", "arguments"))
    ] = None


class Tool(BaseModel):
    """A tool is a function."""

    model_config = STRICT

    type: Literal["function"] = "function"
    function: FunctionDefinition


class NamedFunction(BaseModel):
    model_config = STRICT

    name: Name


class NamedTool(BaseModel):
    """The tool that has to be called."""

    model_config = STRICT

    type: Literal["function"] = "function"
    function: NamedFunction


_CHOICE_MODES = ("auto", "none", "required")


def _named(value: object) -> object:
    """A name is short for the object that names it."""
    if isinstance(value, str):
        return value if value in _CHOICE_MODES else NamedTool(function=NamedFunction(name=value))
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise PydanticCustomError(
            "tool_choice",
            "Must be `auto`, `none`, `required`, the name of a function, or an object with "
            "`function` and in it `name`",
        )
    return NamedTool(function=NamedFunction(name=name))


ToolChoice = Annotated[
    Literal["auto", "none", "required"] | NamedTool,
    BeforeValidator(
        _named, json_schema_input_type=Literal["auto", "none", "required"] | Name | NamedTool
    ),
]


def _object_or_text(value: object) -> object:
    if value is None or isinstance(value, dict | str):
        return value
    raise PydanticCustomError("schema", "A schema must be an object or a string with JSON")


class FormatSchema(BaseModel):
    """A JSON schema with a name. Without a schema, any JSON object."""

    model_config = STRICT

    name: Name | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class TextFormat(BaseModel):
    """Any text."""

    model_config = STRICT

    type: Literal["text"]


class JsonFormat(BaseModel):
    """JSON: any object, or (TGI) what fits the schema in `value`, an object or JSON text."""

    model_config = STRICT

    type: Literal["json_object", "json"]
    value: Annotated[dict[str, Any] | Text | None, BeforeValidator(_object_or_text)] = None


class JsonSchemaFormat(BaseModel):
    """JSON that fits a schema. OpenAI has it in `json_schema`, TGI in `value`."""

    model_config = STRICT

    type: Literal["json_schema"]
    json_schema: Annotated[
        FormatSchema, Field(validation_alias=AliasChoices("json_schema", "value"))
    ]


class RegexFormat(BaseModel):
    """Text that matches a regular expression as a whole (TGI)."""

    model_config = STRICT

    type: Literal["regex"]
    value: Annotated[str, Field(max_length=MAX_GRAMMAR_CHARACTERS)]


def _format_kind(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return {"json_object": "json"}.get(kind, kind) if isinstance(kind, str) else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("text")]
    | Annotated[JsonFormat, Tag("json")]
    | Annotated[JsonSchemaFormat, Tag("json_schema")]
    | Annotated[RegexFormat, Tag("regex")],
    Discriminator(
        _format_kind,
        custom_error_type="response_format",
        custom_error_message=(
            "`type` must be `text`, `json_object`, `json_schema`, or TGI's `json` or `regex`"
        ),
    ),
]


class ChatRequest(SamplingFields):
    """The body of `/v1/chat/completions` and `/chat_tokenize`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: UInt32 | None = None
    logprobs: bool | None = None
    top_logprobs: UInt32 | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    tool_prompt: Text | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise PydanticCustomError(
                "duplicate", "Use `max_tokens` or `max_completion_tokens`: they are the same limit"
            )
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """The limit by either name; None fills the context."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens
