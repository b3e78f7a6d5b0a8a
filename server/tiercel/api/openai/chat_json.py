"""JSON of chat: choices, tool calls and logprobs. Written by hand, once per token."""

import math
from collections.abc import Sequence

from tiercel.api.encoding import json_float, json_or_null, json_string
from tiercel.api.generation import GeneratedToken, ScoredToken
from tiercel.api.openai.choices import CallPiece
from tiercel.text.tokenizer import Tokenizer

_IMPOSSIBLE = "-9999.0"  # how OpenAI writes the logprob of what cannot come
_NO_LOGPROBS = "null"


def text_delta(
    index: int,
    text: str,
    finish_reason: str | None,
    logprobs: str = _NO_LOGPROBS,
    *,
    role: bool = True,
) -> str:
    """A choice of a chunk: more text. Role and content are in every one (contract 1.8)."""
    said = f'"content":{json_string(text)}'
    return _delta(index, said, finish_reason, logprobs, role=role)


def call_delta(index: int, piece: CallPiece, *, role: bool = True) -> str:
    """A choice of a chunk: more of a tool call. Its id and name come once.

    A client adds up what is repeated, so that an id sent twice would be another one.
    """
    head = "" if piece.name is None else f'"id":{json_string(piece.call_id)},"type":"function",'
    function = f'"name":{json_or_null(piece.name)},"arguments":{json_string(piece.arguments)}'
    calls = f'"tool_calls":[{{"index":0,{head}"function":{{{function}}}}}]'
    return _delta(index, calls, piece.finish_reason, _NO_LOGPROBS, role=role)


def text_choice(index: int, text: str, finish_reason: str, logprobs: str = _NO_LOGPROBS) -> str:
    """A choice of an answer that is text."""
    return _choice(index, f'"content":{json_string(text)}', finish_reason, logprobs)


def call_choice(index: int, call_id: str, name: str, arguments: str, finish_reason: str) -> str:
    """A choice of an answer that calls a tool; it has no content."""
    function = f'"description":null,"name":{json_string(name)},"arguments":{json_string(arguments)}'
    calls = f'[{{"id":{json_string(call_id)},"type":"function","function":{{{function}}}}}]'
    return _choice(index, f'"tool_calls":{calls}', finish_reason, _NO_LOGPROBS)


def logprobs_json(tokens: Sequence[GeneratedToken], tokenizer: Tokenizer, best: int) -> str:
    """One entry per token, each with the `best` alternatives at its position."""
    entries = []
    for token in tokens:
        top = ",".join(f"{{{_entry(each, tokenizer)}}}" for each in token.top[:best])
        entries.append(f'{{{_entry(token, tokenizer)},"top_logprobs":[{top}]}}')
    return f'{{"content":[{",".join(entries)}],"refusal":null}}'


def _entry(token: ScoredToken, tokenizer: Tokenizer) -> str:
    """The token by itself. A part of a character is only whole in its bytes."""
    text, raw = token.text, token.text.encode()
    if tokenizer.byte_level:
        text, raw = tokenizer.token_text(token.id), tokenizer.token_bytes(token.id)
    logprob = json_float(token.logprob) if math.isfinite(token.logprob) else _IMPOSSIBLE
    written = ",".join(map(str, raw))
    return f'"token":{json_string(text)},"logprob":{logprob},"bytes":[{written}]'


def _delta(index: int, said: str, finish_reason: str | None, logprobs: str, *, role: bool) -> str:
    who = '"role":"assistant",' if role else ""
    return (
        f'{{"index":{index},"delta":{{{who}{said}}},"logprobs":{logprobs},'
        f'"finish_reason":{json_or_null(finish_reason)}}}'
    )


def _choice(index: int, said: str, finish_reason: str, logprobs: str) -> str:
    return (
        f'{{"index":{index},"message":{{"role":"assistant",{said}}},"logprobs":{logprobs},'
        f'"finish_reason":{json_string(finish_reason)}}}'
    )
