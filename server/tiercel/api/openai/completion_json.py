"""JSON of text completions: choices and their logprobs. Written by hand, once per token."""

from collections.abc import Sequence

from tiercel.api.encoding import json_float, json_string
from tiercel.api.generation import GeneratedToken, PrefillToken, ScoredToken


def choice_json(index: int, text: str, logprobs: str, finish_reason: str) -> str:
    """One choice. An unfinished one of a stream has an empty reason (contract 1.9)."""
    return (
        f'{{"index":{index},"text":{json_string(text)},"logprobs":{logprobs},'
        f'"finish_reason":{json_string(finish_reason)}}}'
    )


def logprobs_json(
    tokens: Sequence[GeneratedToken | PrefillToken], offset: int, *, best: int
) -> tuple[str, int]:
    """(logprobs of these tokens, of which the first begins at `offset`; where the next one does).

    With `best` there are so many alternatives at each position, as OpenAI has it a mapping of
    texts; the token itself is always among them.
    """
    offsets = []
    for token in tokens:
        offsets.append(str(offset))
        offset += len(token.text)
    texts = ",".join(json_string(token.text) for token in tokens)
    values = ",".join(json_float(token.logprob) for token in tokens)
    top = "null"
    if best:
        top = f"[{','.join(_top(token, best) for token in tokens)}]"
    return (
        f'{{"tokens":[{texts}],"token_logprobs":[{values}],"top_logprobs":{top},'
        f'"text_offset":[{",".join(offsets)}]}}',
        offset,
    )


def _top(token: GeneratedToken | PrefillToken, best: int) -> str:
    if token.logprob is None:  # the first token of a prompt follows nothing
        return "null"
    entries: dict[str, float] = {}
    ranked: list[ScoredToken | PrefillToken] = [*token.top[:best], token]
    for each in ranked:  # different tokens can have one text: the best stays
        entries.setdefault(each.text, each.logprob or 0.0)
    pairs = (f"{json_string(text)}:{json_float(value)}" for text, value in entries.items())
    return f"{{{','.join(pairs)}}}"
