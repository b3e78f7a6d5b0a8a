"""How answers and events of both OpenAI routes begin and end: their head, the usage."""

import secrets
import time
from collections.abc import Iterable

import tiercel
from tiercel.api.encoding import json_string
from tiercel.api.options import EdgeOptions


class Head:
    """One request's id, time, model and server, in front of every document of its answer."""

    def __init__(self, kind: str, chunk_kind: str, fields: str) -> None:
        """`kind` and `chunk_kind`: `object` of the answer, and of an event; `fields`: JSON."""
        self._answer = f'"object":"{kind}",{fields}'
        self._chunk = f'"object":"{chunk_kind}",{fields}'

    def answer(self, choices: Iterable[str], usage: str) -> str:
        """The answer in one piece."""
        return f'{{{self._answer},"choices":[{",".join(choices)}],"usage":{usage}}}'

    def chunk(self, choice: str, usage: str | None) -> str:
        """One event of a stream; the one with the usage of all may have no choice."""
        tail = "" if usage is None else f',"usage":{usage}'
        return f'data: {{{self._chunk},"choices":[{choice}]{tail}}}\n\n'


def head_fields(prefix: str, model: str, options: EdgeOptions) -> str:
    """JSON of a new request's fields; its id begins with `prefix`."""
    fingerprint = f"{tiercel.__version__}-{options.docker_label or 'native'}"
    return (
        f'"id":{json_string(prefix + secrets.token_hex(12))},"created":{int(time.time())},'
        f'"model":{json_string(model)},"system_fingerprint":{json_string(fingerprint)}'
    )


def usage_json(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> str:
    """Tokens of a request."""
    return (
        f'{{"prompt_tokens":{prompt_tokens},"completion_tokens":{completion_tokens},'
        f'"total_tokens":{prompt_tokens + completion_tokens},'
        f'"prompt_tokens_details":{{"cached_tokens":{cached_tokens}}}}}'
    )
