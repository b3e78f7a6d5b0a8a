"""The answers of `/v1/chat/completions`, for its description; `chat_json.py` writes them."""

from pydantic import BaseModel


class TopLogprobBody(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobBody(TopLogprobBody):
    """One generated token. `bytes` are those of the token alone."""

    top_logprobs: list[TopLogprobBody]


class ChatLogprobsBody(BaseModel):
    content: list[TokenLogprobBody]
    refusal: None = None


class CalledBody(BaseModel):
    """`arguments` is a JSON text."""

    description: str | None
    name: str
    arguments: str


class ToolCallBody(BaseModel):
    id: str
    type: str
    function: CalledBody


class AnswerMessageBody(BaseModel):
    """Has `content` or `tool_calls`."""

    role: str
    content: str | None = None
    tool_calls: list[ToolCallBody] | None = None


class ChatChoiceBody(BaseModel):
    index: int
    message: AnswerMessageBody
    logprobs: ChatLogprobsBody | None
    finish_reason: str


class PromptTokensBody(BaseModel):
    """Prompt tokens that the prefix cache answered."""

    cached_tokens: int


class ChatUsageBody(BaseModel):
    """The prompt counts once, however many choices answer it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensBody


class ChatResponse(BaseModel):
    """The answer of `/v1/chat/completions`."""

    object: str
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoiceBody]
    usage: ChatUsageBody


class OpenAIErrorBody(BaseModel):
    """`param` names the field, where it is one's; `code` is for machines."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorAnswer(BaseModel):
    """Every error under /v1, with TGI's `error_type` beside it."""

    error: OpenAIErrorBody
    error_type: str


ERRORS: dict[int | str, dict[str, object]] = {
    status: {"model": OpenAIErrorAnswer, "description": description}
    for status, description in {
        400: "The body is not JSON",
        401: "An API key is needed",
        413: "The body is too large",
        415: "The body is not declared as JSON",
        422: "A field of the wrong type, or a value out of its limits",
        424: "The generation failed",
        500: "The generation ended without its last token",
        429: "The server is full",
        503: "The server is shutting down",
    }.items()
}
