"""The body of `/v1/completions`. Which prompts it stands for, not what they may hold."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from tiercel.api.openai.fields import SamplingFields
from tiercel.api.schema import Text, UInt32
from tiercel.api.validation import Prompt

MAX_PROMPTS = 2_048  # the server's own limit is lower and has the better sentence
MAX_TOKEN_IDS = 65_536  # eight times the longest context of a Falcon
MAX_LOGPROBS = 20  # OpenAI's limit for chat; five here

TokenIds = Annotated[list[UInt32], Field(max_length=MAX_TOKEN_IDS)]


def _prompts(value: object) -> object:
    """Any of the four forms as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        if not value:
            raise PydanticCustomError("prompt", "A prompt is needed: the array is empty")
        prompts = [value] if isinstance(value[0], int) else value
        if all(isinstance(prompt, str) or _are_ids(prompt) for prompt in prompts):
            return prompts
    raise PydanticCustomError(
        "prompt",
        "Must be a string, an array of strings, an array of token ids, or an array of those",
    )


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(id_) is int and 0 <= id_ < 2**32 for id_ in value)


Prompts = Annotated[
    list[Text | TokenIds],
    Field(max_length=MAX_PROMPTS),
    BeforeValidator(
        _prompts,
        json_schema_input_type=Text
        | Annotated[list[Text], Field(max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS)],
    ),
]


class CompletionRequest(SamplingFields):
    """The body of `/v1/completions`. Unknown fields are ignored."""

    prompt: Prompts
    best_of: UInt32 | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    suffix: Any = None

    @property
    def prompts(self) -> list[Prompt]:
        """Each of them, in order. Special tokens are added to texts."""
        return [
            Prompt(each) if isinstance(each, str) else Prompt("", tuple(each))
            for each in self.prompt
        ]

    @property
    def sequences(self) -> int:
        """How many are generated for each prompt, of which `choices` are answered."""
        return max(self.choices, self.best_of or 1)


class UsageBody(BaseModel):
    """Tokens of a whole request, or of one choice in a stream."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobsBody(BaseModel):
    """One entry per token. `text_offset` counts characters from the choice's beginning."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoiceBody(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobsBody | None
    finish_reason: str


class CompletionResponse(BaseModel):
    """The answer of `/v1/completions`."""

    object: str
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoiceBody]
    usage: UsageBody
