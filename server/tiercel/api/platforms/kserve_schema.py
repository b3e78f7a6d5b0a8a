"""The JSON shapes of the Open Inference Protocol and of Triton's generate extension."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from tiercel.api.schema import (
    MAX_TEXT_CHARACTERS,
    STRICT,
    GenerateParameters,
    Name,
    Text,
    UInt32,
    UInt64,
)

MAX_TENSORS = 4_096  # what is read; how many prompts are answered is --max-client-batch-size
Byte = Annotated[int, Field(ge=0, le=255)]
# Without fail_fast a long list of another kind makes one error per item: seconds of work.
Bytes = Annotated[list[Byte], Field(max_length=4 * MAX_TEXT_CHARACTERS, fail_fast=True)]
Strings = Annotated[list[Text], Field(max_length=MAX_TENSORS, fail_fast=True)]
Rows = Annotated[list[Strings], Field(max_length=MAX_TENSORS, fail_fast=True)]


class InferInput(BaseModel):
    """A tensor. `data` is the bytes of one prompt, or the protocol's BYTES: one string a prompt."""

    model_config = STRICT

    name: Name
    shape: Annotated[list[UInt64], Field(max_length=8)]
    datatype: Name
    data: Annotated[Bytes | Strings | Rows, Field(union_mode="left_to_right")]


class InferOutput(BaseModel):
    """A tensor that is asked for."""

    model_config = STRICT

    name: Name


class InferRequest(BaseModel):
    """The body of `infer`. `parameters` hold for all prompts."""

    model_config = STRICT

    id: Name | None = None
    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[list[InferOutput], Field(max_length=MAX_TENSORS)] | None = None
    parameters: GenerateParameters = Field(
        default_factory=lambda: GenerateParameters(do_sample=True)
    )


class OutputTensor(BaseModel):
    """The text for one input, as its input was written: bytes or strings."""

    name: str
    shape: list[int]
    datatype: str
    data: list[int] | list[str]


class InferResponse(BaseModel):
    """The answer of `infer`. `id` is absent if the request had none."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TritonParameters(GenerateParameters):
    """Those of `/generate`, and Triton's name for one of them. Unknown ones are ignored."""

    max_tokens: UInt32 | None = None


class TritonRequest(BaseModel):
    """The body of `generate` and `generate_stream`."""

    model_config = STRICT

    id: Name | None = None
    text_input: Text
    parameters: TritonParameters = Field(default_factory=lambda: TritonParameters(do_sample=True))


class TritonResponse(BaseModel):
    """The answer of `generate`, and each event of `generate_stream`: there the next piece."""

    id: str | None = None
    model_name: str
    model_version: str
    text_output: str


class ServerBody(BaseModel):
    """GET `/v2`."""

    name: str
    version: str
    extensions: list[str]


class LiveBody(BaseModel):
    """A probe's answer while the server is well."""

    live: bool


class ReadyBody(LiveBody):
    """TGI answers with `live`, the protocol with `ready`."""

    ready: bool


class ModelBody(BaseModel):
    """GET `/v2/models/{name}`: TGI's keys, then the protocol's."""

    name: str
    version: str
    extensions: list[str]
    versions: list[str]
    platform: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
