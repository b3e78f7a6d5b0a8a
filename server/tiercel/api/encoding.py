"""JSON and event text for answers, written by hand: this runs once per generated token.

Compact; floats as the shortest decimal of a 32-bit float, non-finite ones as null; text as raw
UTF-8 except U+0085, U+2028 and U+2029, where some clients would split a line.
"""

from collections.abc import Iterable
from json.encoder import encode_basestring

import msgspec
import numpy as np

from tiercel.api.generation import GeneratedToken, Generation, ScoredToken
from tiercel.errors import RequestError
from tiercel.text.tokenizer import TextToken

_FLOAT32_MAX = 3.4028235e38
_SPLITTERS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_float32 = np.float32


def json_string(text: str) -> str:
    """The text as a JSON string literal."""
    literal = encode_basestring(text)
    return literal if literal.isascii() else literal.translate(_SPLITTERS)


def json_or_null(text: str | None) -> str:
    """The text as a JSON string literal, if there is one."""
    return "null" if text is None else json_string(text)


def document_json(document: object) -> bytes:
    """A whole answer that is not worth writing by hand, as UTF-8."""
    content = msgspec.json.encode(document)
    return content if content.isascii() else content.decode().translate(_SPLITTERS).encode()


def json_float(value: float | None) -> str:
    """The shortest decimal that is the same 32-bit float; null for None, NaN and infinities."""
    if value is None or not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
        return "null"
    return str(_float32(value + 0.0))  # + 0.0 makes a negative zero positive


def token_json(token: ScoredToken) -> str:
    """One token as the contract's object; a GeneratedToken is a ScoredToken, too."""
    return (
        f'{{"id":{token.id},"text":{json_string(token.text)},'
        f'"logprob":{json_float(token.logprob)},"special":{"true" if token.special else "false"}}}'
    )


def top_tokens_json(tokens: list[ScoredToken]) -> str:
    """The alternatives at one position."""
    return f"[{','.join(map(token_json, tokens))}]"


def token_event(index: int, token: GeneratedToken, tail: str | None = None) -> str:
    """One token's event. `tail` is the last event's text and details, see `stream_tail`."""
    top = f',"top_tokens":{top_tokens_json(token.top)}' if token.top else ""
    tail = tail or '"generated_text":null,"details":null'
    return f'data: {{"index":{index},"token":{token_json(token)}{top},{tail}}}\n\n'


def stream_tail(generation: Generation, full_text: str, *, details: bool) -> str:
    """What only the last event of a stream carries."""
    text = json_string(full_text)
    if not details:
        return f'"generated_text":{text},"details":null'
    return (
        f'"generated_text":{text},"details":{{{_ending(generation)},'
        f'"input_length":{generation.input_tokens}}}'
    )


def response_json(
    generation: Generation,
    tokens: list[GeneratedToken],
    full_text: str,
    *,
    details: bool,
    others: str = "",
) -> str:
    """The answer of `/generate`; `others` are the worse sequences, see `sequence_json`."""
    text = json_string(full_text)
    if not details:
        return f'{{"generated_text":{text}}}'
    best_of = f',"best_of_sequences":[{others}]' if others else ""
    return (
        f'{{"generated_text":{text},"details":{{{_ending(generation)},'
        f"{_tokens(generation, tokens, best_of)}}}}}"
    )


def sequence_json(generation: Generation, tokens: list[GeneratedToken], full_text: str) -> str:
    """One sequence that `best_of` made and did not choose."""
    return (
        f'{{"generated_text":{json_string(full_text)},{_ending(generation)},'
        f"{_tokens(generation, tokens)}}}"
    )


def _tokens(generation: Generation, tokens: list[GeneratedToken], best_of: str = "") -> str:
    prefill = ",".join(
        f'{{"id":{each.id},"text":{json_string(each.text)},"logprob":{json_float(each.logprob)}}}'
        for each in generation.prefill()
    )
    top = ""
    if generation.top_n_tokens:
        top = f',"top_tokens":[{",".join(top_tokens_json(token.top) for token in tokens)}]'
    chosen = ",".join(map(token_json, tokens))
    return f'"prefill":[{prefill}],"tokens":[{chosen}]{best_of}{top}'


def tokenized_json(tokens: Iterable[TextToken]) -> str:
    """Tokens as the contract's objects, between commas."""
    return ",".join(map(_text_token_json, tokens))


def _text_token_json(token: TextToken) -> str:
    return (
        f'{{"id":{token.id},"text":{json_string(token.text)},'
        f'"start":{token.start},"stop":{token.stop}}}'
    )


def error_json(error: RequestError) -> str:
    """A request's error, as a body or inside an event."""
    return f'{{"error":{json_string(str(error))},"error_type":{json_string(error.error_type)}}}'


def error_event(error: RequestError) -> str:
    """The last event of a stream that failed."""
    return f"data: {error_json(error)}\n\n"


def _ending(generation: Generation) -> str:
    seed = "null" if generation.seed is None else str(generation.seed)
    return (
        f'"finish_reason":{json_string(generation.finish_reason or "")},'
        f'"generated_tokens":{generation.generated_tokens},"seed":{seed}'
    )
