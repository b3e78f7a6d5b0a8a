"""JSON of text completions: answers, chunks and their logprobs. Written by hand, once per token."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tiercel.api.encoding import json_float, json_string
from tiercel.api.generation import GeneratedToken, PrefillToken, ScoredToken


@dataclass(frozen=True)
class Head:
    """What every answer and every chunk of a request begins with."""

    id: str
    created: int
    model: str
    fingerprint: str

    def json(self) -> str:
        """The fields before `choices`."""
        return (
            f'"object":"text_completion","id":{json_string(self.id)},"created":{self.created},'
            f'"model":{json_string(self.model)},'
            f'"system_fingerprint":{json_string(self.fingerprint)}'
        )


def answer_json(head: Head, choices: Iterable[str], usage: str) -> str:
    """The answer in one piece."""
    return f'{{{head.json()},"choices":[{",".join(choices)}],"usage":{usage}}}'


def choice_json(index: int, text: str, logprobs: str, finish_reason: str) -> str:
    """One choice. An unfinished one of a stream has an empty reason (contract 1.9)."""
    return (
        f'{{"index":{index},"text":{json_string(text)},"logprobs":{logprobs},'
        f'"finish_reason":{json_string(finish_reason)}}}'
    )


def chunk_event(head: Head, choice: str, usage: str | None) -> str:
    """One event of a stream; only the last one of a choice has its usage."""
    tail = "" if usage is None else f',"usage":{usage}'
    return f'data: {{{head.json()},"choices":[{choice}]{tail}}}\n\n'


def usage_event(head: Head, usage: str) -> str:
    """The chunk that `include_usage` asks for, before `[DONE]`."""
    return f'data: {{{head.json()},"choices":[],"usage":{usage}}}\n\n'


def usage_json(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> str:
    """Tokens of a request."""
    return (
        f'{{"prompt_tokens":{prompt_tokens},"completion_tokens":{completion_tokens},'
        f'"total_tokens":{prompt_tokens + completion_tokens},'
        f'"prompt_tokens_details":{{"cached_tokens":{cached_tokens}}}}}'
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
