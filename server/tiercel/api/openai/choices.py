"""One answer of a chat request while it is generated: a text, or a tool call, or either of them.

Reads like a Generation, so that several run side by side. Knows no JSON of answers.
"""

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from tiercel.api.generation import GeneratedToken, Generation
from tiercel.api.openai.tools import CallReader
from tiercel.api.record import RequestRecord
from tiercel.errors import ToolError
from tiercel.telemetry.genai import FINISH_REASONS

TOOL_CALLS = "tool_calls"
_MAX_QUOTED_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The tokens of one step. The finish reason comes with the last one, in OpenAI's words."""

    tokens: list[GeneratedToken]
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A part of a tool call. The name comes once, the finish reason with the last one."""

    call_id: str
    name: str | None = None
    arguments: str = ""
    finish_reason: str | None = None


Piece = TextPiece | CallPiece


class TextChoice:
    """An answer that is text."""

    def __init__(self, text: Generation) -> None:
        self.generation = text  # whose tokens and ending are reported

    async def deltas(self) -> AsyncGenerator[TextPiece, None]:
        """See Generation."""
        # When a piece is read, the generation may have ended: others are read beside it.
        async with aclosing(self.generation.deltas()) as deltas:
            async for tokens in deltas:
                yield TextPiece(tokens, finish_reason(self.generation))


class CallChoice:
    """An answer that calls a tool; with `text`, only if the model wants to.

    The model decides by the name it writes. If that is `no_call`, or the token limit comes before
    it, the call is given up and the text is generated from its own prompt.
    """

    def __init__(
        self,
        record: RequestRecord,
        call: Generation,
        text: Generation | None = None,
        no_call: str | None = None,
    ) -> None:
        self.id = f"call_{secrets.token_hex(12)}"
        self.generation = call  # whose tokens and ending are reported
        self.reader = CallReader()
        self._record = record
        self._text = text
        self._no_call = no_call

    async def deltas(self) -> AsyncGenerator[Piece, None]:
        """See Generation. Raises ToolError for a call without a name."""
        call, reader = self.generation, self.reader
        async with aclosing(call.deltas()) as deltas:
            async for tokens in deltas:
                unnamed = reader.name is None
                arguments = reader.feed("".join(token.shown for token in tokens))
                if unnamed and reader.name is not None:
                    if reader.name == self._no_call:
                        break
                    self._keep(call, self._text)
                    yield CallPiece(self.id, reader.name, arguments)
                elif arguments:
                    yield CallPiece(self.id, None, arguments)
        text = self._text
        if text is None or reader.name not in (None, self._no_call):
            if reader.name is None:
                raise self.cut_off()
            reason = TOOL_CALLS if reader.complete else finish_reason(call)
            yield CallPiece(self.id, finish_reason=reason)
            return
        self.generation = text
        self._keep(text, call)
        async with aclosing(TextChoice(text).deltas()) as pieces:
            async for piece in pieces:
                yield piece

    def cut_off(self) -> ToolError:
        """The token limit came before the end of the call."""
        return ToolError(
            "the call is not complete after `max_tokens` tokens: "
            f"{self.reader.text[:_MAX_QUOTED_CHARACTERS]}"
        )

    def _keep(self, kept: Generation, other: Generation | None) -> None:
        if other is not None:
            self._record.discard(other.record, kept.record, kept.input_tokens)


Choice = TextChoice | CallChoice


def finish_reason(generation: Generation) -> str | None:
    """In OpenAI's words; None while it runs."""
    reason = generation.finish_reason
    return None if reason is None else FINISH_REASONS[reason]
