"""What OpenAI's routes share of a request's body: the field types, and the base of both bodies.

Friendlier than the native shapes: `null` means absent everywhere, and a seed may be negative. Types
and sizes are judged here, values in `parameters.py`.
"""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from tiercel.api.schema import (
    MAX_STOP_STRINGS,
    STRICT,
    Float32,
    Int32,
    Name,
    StopString,
    UInt32,
)

MAX_CHOICES = 128  # OpenAI's limit of `n`
MAX_BIASES = 300


def _one_as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _list_as_nothing(value: object) -> object:
    """TGI took an array of floats here and ignored it; its clients still have such a field."""
    return {} if isinstance(value, list) else value


Stop = Annotated[
    list[StopString],
    Field(max_length=MAX_STOP_STRINGS),
    BeforeValidator(
        _one_as_list,
        json_schema_input_type=StopString
        | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)],
    ),
]
TokenId = Annotated[str, Field(max_length=10, pattern=r"^[0-9]+$")]
LogitBias = Annotated[
    dict[TokenId, Float32], Field(max_length=MAX_BIASES), BeforeValidator(_list_as_nothing)
]
# OpenAI's seed is a signed integer of 64 bits, TGI's an unsigned one.
Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]


class StreamOptions(BaseModel):
    """`include_usage` asks for one more chunk with the usage."""

    model_config = STRICT

    include_usage: bool | None = None


class SamplingFields(BaseModel):
    """The fields that chat and text completions have in common. Unknown fields are ignored."""

    model_config = STRICT

    model: Name | None = None
    frequency_penalty: Float32 | None = None
    presence_penalty: Float32 | None = None
    repetition_penalty: Float32 | None = None
    temperature: Float32 | None = None
    top_p: Float32 | None = None
    top_k: Int32 | None = None
    typical_p: Float32 | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    max_tokens: UInt32 | None = None
    n: UInt32 | None = None
    logit_bias: LogitBias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        return 1 if self.n is None else self.n

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        options = self.stream_options
        return options is not None and options.include_usage is True
