"""The JSON shapes of the native routes: strict types and integer widths, as TGI's Rust structs had.

Values are judged in `validation.py`; here only what a field can hold at all. Unknown fields are
ignored. The response models document the wire; answers are written by `encoding.py`.
"""

import struct
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

_FLOAT32 = struct.Struct("<f")  # the native format would make an infinity of 1e39


def to_float32(value: float) -> float:
    """The nearest 32-bit float. Raises PydanticCustomError beyond its range."""
    try:
        nearest: float = _FLOAT32.unpack(_FLOAT32.pack(value))[0]
    except OverflowError:
        raise PydanticCustomError("float32", "Number out of the range of a 32-bit float") from None
    return nearest


def _no_bool(value: object) -> object:
    """Even a strict float takes `true` for 1.0."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "Input should be a valid number")
    return value


MAX_FLOAT32 = 3.4028234663852886e38
MAX_TEXT_CHARACTERS = 4_000_000  # beyond any context; --payload-limit is usually lower
MAX_STOP_STRINGS = 2_048  # the server's own limit, at most 1,024, has the better sentence
MAX_STOP_CHARACTERS = 4_096
MAX_NAME_CHARACTERS = 1_024

Float32 = Annotated[
    float,
    Field(ge=-MAX_FLOAT32, le=MAX_FLOAT32),
    BeforeValidator(_no_bool),
    AfterValidator(to_float32),
]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
UInt32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
UInt64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
StopString = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]

STRICT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class JsonGrammar(BaseModel):
    """The text is JSON that fits a schema, given as an object or as a string that holds one."""

    model_config = STRICT

    type: Literal["json", "json_object"]
    value: Any


class NamedSchema(BaseModel):
    """A JSON schema as OpenAI wraps it."""

    model_config = STRICT

    name: Name | None = None
    schema_: Any = Field(alias="schema")


class JsonSchemaGrammar(BaseModel):
    """The text is JSON that fits a schema."""

    model_config = STRICT

    type: Literal["json_schema"]
    value: NamedSchema


class RegexGrammar(BaseModel):
    """The whole text matches a regular expression."""

    model_config = STRICT

    type: Literal["regex"]
    value: Text


GrammarBody = Annotated[JsonGrammar | JsonSchemaGrammar | RegexGrammar, Field(discriminator="type")]


class GenerateParameters(BaseModel):
    """How to generate. Fields that take `null` mean by it what they mean when absent."""

    model_config = STRICT

    best_of: UInt64 | None = None
    temperature: Float32 | None = None
    repetition_penalty: Float32 | None = None
    frequency_penalty: Float32 | None = None
    top_k: Int32 | None = None
    top_p: Float32 | None = None
    typical_p: Float32 | None = None
    do_sample: bool = False
    max_new_tokens: UInt32 | None = None
    return_full_text: bool | None = None
    stop: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] = []
    truncate: UInt64 | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: UInt64 | None = None
    top_n_tokens: UInt32 | None = None
    grammar: GrammarBody | None = None
    adapter_id: Name | None = None


def _absent_parameters() -> GenerateParameters:
    """TGI's default trap: without `parameters` a request is sampled, with `{}` it is greedy."""
    return GenerateParameters(do_sample=True)


class GenerateRequest(BaseModel):
    """The body of `/generate`, `/generate_stream` and `/tokenize`."""

    model_config = STRICT

    inputs: Text
    parameters: GenerateParameters = Field(default_factory=_absent_parameters)


class LegacyGenerateRequest(GenerateRequest):
    """The body of POST `/`, the shape of the old Inference API."""

    stream: bool = False


class TokenBody(BaseModel):
    id: int
    text: str
    logprob: float | None
    special: bool


class PrefillTokenBody(BaseModel):
    id: int
    text: str
    logprob: float | None


class BestOfSequenceBody(BaseModel):
    """One of the sequences that were worse."""

    generated_text: str
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillTokenBody]
    tokens: list[TokenBody]
    top_tokens: list[list[TokenBody]] | None = None


class DetailsBody(BaseModel):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillTokenBody]
    tokens: list[TokenBody]
    best_of_sequences: list[BestOfSequenceBody] | None = None
    top_tokens: list[list[TokenBody]] | None = None


class GenerateResponse(BaseModel):
    """The answer of `/generate`; POST `/` wraps it in an array."""

    generated_text: str
    details: DetailsBody | None = None


class TokenizedBody(BaseModel):
    """One token of `/tokenize`. `start` and `stop` are byte offsets into `inputs`."""

    id: int
    text: str
    start: int
    stop: int


class ErrorBody(BaseModel):
    """Every JSON error of the native routes, in a body or as a stream event."""

    error: str
    error_type: str
