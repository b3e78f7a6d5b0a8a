"""From a request's bytes to a schema: content type, size limit, JSON, types.

What is refused here is answered in plain text, as TGI's web framework did; JSON errors begin with
validation of values.
"""

import json
import re
from typing import TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

Model = TypeVar("Model", bound=BaseModel)

MAX_DEPTH = 64  # lists and objects within each other
MAX_PARTS = 50_000  # lists, objects and fields: 2 MB of empty lists are 50 MB of Python, and slow
MAX_PATH = 200  # characters of a field's path in an answer: parts of it are the caller's own
MAX_REASON = 300  # and of what is wrong with it, which may quote the caller
_NOT_JSON = "Failed to parse the request body as JSON"
_NO_FIT = "Failed to deserialize the JSON body into the target type"
_OBJECTS = ("model_type", "model_attributes_type")
_TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} times"
_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{}:"')
_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape for half of a pair
_LONE = re.compile("[\ud800-\udfff]")


class BodyRefused(Exception):
    """The body cannot be read. `status`, one plain sentence and the field, where it is one's."""

    def __init__(self, status: int, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.param = param


async def read_model(request: Request, model: type[Model], limit_bytes: int) -> Model:
    """The body as a `model`. Raises BodyRefused: 415, 413, 400 or 422, in that order."""
    if not is_json(request.headers.get("content-type", "")):
        raise BodyRefused(415, "Expected request with `Content-Type: application/json`")
    return parse(await read_bytes(request, limit_bytes), model)


def is_json(content_type: str) -> bool:
    """True for `application/json` and `application/*+json`, whatever their parameters."""
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


async def read_bytes(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises BodyRefused: 415 when compressed, 413 as soon as it is too large."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise BodyRefused(415, "A compressed body is not read: send it without `Content-Encoding`")
    too_large = BodyRefused(413, f"The request body is larger than {limit_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit_bytes):
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large
    return bytes(body)


def parse(body: bytes, model: type[Model]) -> Model:
    """Raises BodyRefused: 400 for what is not JSON, 422 for JSON that does not fit the model."""
    return fit(decode(body), model)


def decode(body: bytes) -> object:
    """The document. Raises BodyRefused: 400, or 422 for text that is no Unicode."""
    _check_structure(body)
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise BodyRefused(400, f"{_NOT_JSON}: {_TOO_DEEP}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        field = _half_character(body)
        if field is not None:
            raise BodyRefused(
                422,
                f"{_NO_FIT}: {field}: half of a surrogate pair is no character",
                param=field,
            ) from None
        raise BodyRefused(400, f"{_NOT_JSON}: {error}") from None


def _check_structure(body: bytes) -> None:
    """Before parsing, in linear time. What is not balanced is left to the parser's own words."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH and body.count(b":") <= MAX_PARTS:
        return
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    quoted = unescaped.translate(_AS_LISTS, _NO_STRUCTURE).replace(b'""', b"")
    structure = b"".join(quoted.split(b'"')[::2])  # what stands outside of texts
    brackets = structure.replace(b":", b"")
    if brackets.startswith(b"[" * (MAX_DEPTH + 1)):
        raise BodyRefused(400, f"{_NOT_JSON}: {_TOO_DEEP}")
    if 2 * len(structure) - len(brackets) > 2 * MAX_PARTS:  # two brackets count as one colon does
        sentence = f"it has more than {MAX_PARTS} lists, objects and fields"
        if 2 * brackets.count(b"[") != len(brackets):
            raise BodyRefused(400, f"{_NOT_JSON}: {sentence}")
        raise BodyRefused(422, f"{_NO_FIT}: .: {sentence}", param=".")
    for _ in range(MAX_DEPTH):  # each round takes the innermost ones away
        brackets = brackets.replace(b"[]", b"")
    if b"[]" in brackets:
        raise BodyRefused(400, f"{_NOT_JSON}: {_TOO_DEEP}")


def _half_character(body: bytes) -> str | None:
    """The path of a text that holds a lone surrogate, if that is what is wrong with the body."""
    if _SURROGATE.search(body) is None:
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    waiting: list[tuple[str, object]] = [("", document)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str) and not value.isascii() and _LONE.search(value):
            return path[1:] or "."
        if isinstance(value, dict):
            for key, inner in value.items():
                if _LONE.search(key):
                    return path[1:] or "."
                waiting.append((f"{path}.{key}"[:MAX_PATH], inner))
        elif isinstance(value, list):
            waiting += [(f"{path}.{index}", inner) for index, inner in enumerate(value)]
    return None


def fit(document: object, model: type[Model]) -> Model:
    """A parsed document as a `model`. Raises BodyRefused 422 naming the first field that is not."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"])[:MAX_PATH] or "."
        # The library names our class in this one.
        reason = "Input should be an object" if first["type"] in _OBJECTS else first["msg"]
        if len(reason) > MAX_REASON:
            reason = f"{reason[:MAX_REASON]}..."
        raise BodyRefused(422, f"{_NO_FIT}: {path}: {reason}", param=path) from None
