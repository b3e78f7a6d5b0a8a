"""From a chat request to its choices, ready to run: prompts, parameters, grammars, sequences."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from tiercel.api.edge import Edge
from tiercel.api.grammar import grammar_of, json_schema
from tiercel.api.openai.choices import CallChoice, Choice, TextChoice
from tiercel.api.openai.parameters import MAX_TOP_LOGPROBS, extras_of, generate_parameters
from tiercel.api.openai.prompt import chat_prompt
from tiercel.api.openai.schema import (
    ChatRequest,
    JsonFormat,
    RegexFormat,
    ResponseFormat,
    TextFormat,
)
from tiercel.api.openai.tools import ToolUse, tool_use
from tiercel.api.record import RequestRecord
from tiercel.api.schema import GenerateParameters, JsonGrammar, RegexGrammar
from tiercel.api.validation import Extras, ValidatedRequest
from tiercel.errors import RequestError, ToolError, ValidationError
from tiercel.wire.request import Grammar

Result = TypeVar("Result")

_ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class ChatStart:
    """Choices that have not begun, and the length of the prompt in characters."""

    choices: list[Choice]
    prompt_characters: int


async def chat_start(edge: Edge, body: ChatRequest, record: RequestRecord) -> ChatStart:
    """Renders, tokenizes and validates. Raises RequestError."""
    use = tool_use(body)
    parameters = generate_parameters(
        body, max_new_tokens=body.max_new_tokens, top_n_tokens=_top_n(body)
    )
    start = _Start(edge, body, record, parameters, extras_of(body, edge.options))
    if use is None:
        return await start.text()
    return await start.calls(use)


@dataclass(frozen=True)
class _Start:
    edge: Edge
    body: ChatRequest
    record: RequestRecord
    parameters: GenerateParameters
    extras: Extras

    async def text(self) -> ChatStart:
        """Every choice is text, free or in the format asked for."""
        request = await self._text_request()
        choices: list[Choice] = [
            TextChoice(self.edge.start(request, self.record, nth))
            for nth in range(self.body.choices)
        ]
        return ChatStart(choices, len(request.inputs))

    async def calls(self, use: ToolUse) -> ChatStart:
        """Every choice is a call. Where it need not be one, its text is made ready beside it."""
        body = self.body
        prompt = await chat_prompt(self.edge, body.messages, use.tools, body.tool_prompt)
        # Stop strings are for text: they would cut a call's JSON.
        try:
            request = await self.edge.validated(
                prompt,
                self.parameters.model_copy(update={"stop": []}),
                self.record,
                replace(self.extras, grammar=_written(use.grammar)),
            )
        except ValidationError as error:
            raise _of_tools(error) from None
        text = None if use.no_call is None else await self._text_request()
        choices: list[Choice] = []
        for nth in range(body.choices):
            call = self.edge.start(request, self.record, nth)
            other = None if text is None else self.edge.start(text, self.record, nth)
            choices.append(CallChoice(self.record, call, other, use.no_call))
        return ChatStart(choices, len(request.inputs))

    async def _text_request(self) -> ValidatedRequest:
        prompt = await chat_prompt(self.edge, self.body.messages)
        grammar = _written(lambda: _format_grammar(self.body.response_format))
        extras = self.extras
        if grammar is not None:
            extras = replace(extras, grammar=grammar)
        else:
            extras = replace(extras, default_stops=self.edge.chat_template.default_stops)
        return await self.edge.validated(prompt, self.parameters, self.record, extras)


def _top_n(body: ChatRequest) -> int | None:
    """Alternatives are for logprobs; alone they are ignored, as TGI did."""
    if body.top_logprobs is not None and body.top_logprobs > MAX_TOP_LOGPROBS:
        raise ValidationError(
            f"`top_logprobs` must be at most {MAX_TOP_LOGPROBS}. Given: {body.top_logprobs}"
        )
    return body.top_logprobs if body.logprobs else None


def _format_grammar(response_format: ResponseFormat | None) -> Grammar | None:
    """The grammar of an answer's format; none for plain text. Raises ValidationError."""
    if response_format is None or isinstance(response_format, TextFormat):
        return None
    if isinstance(response_format, RegexFormat):
        return grammar_of(RegexGrammar(type="regex", value=response_format.value))
    if isinstance(response_format, JsonFormat):
        if response_format.value is None:
            return json_schema(_ANY_OBJECT)
        return grammar_of(JsonGrammar(type="json", value=response_format.value))
    schema = response_format.json_schema.schema_
    return json_schema(_ANY_OBJECT if schema is None else schema)


def _of_tools(error: ValidationError) -> RequestError:
    """What is wrong with a call's grammar is wrong with the tools: nobody has sent a grammar."""
    reason = str(error.args[0])
    if not reason.startswith("grammar is"):
        return error
    return ToolError(f"`tools` cannot be used: {reason.replace('`grammar`', '`tools`')}")


def _written(grammar: Callable[[], Result]) -> Result:
    """A grammar, unless its schema is too deep to be written down: that is the caller's fault."""
    try:
        return grammar()
    except RecursionError:
        raise ValidationError("grammar is not valid: its schema is nested too deeply") from None
