"""From a request's bytes to a schema: content type, size limit, JSON, types.

What is refused here is answered in plain text, as TGI's web framework did; JSON errors begin with
validation of values.
"""

from typing import TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

Model = TypeVar("Model", bound=BaseModel)


class BodyRefused(Exception):
    """The body cannot be read. `status` and one plain sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


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
    """The whole body. Raises BodyRefused 413 before reading more than the limit."""
    too_large = BodyRefused(413, f"The request body is larger than {limit_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large
    return bytes(body)


def parse(body: bytes, model: type[Model]) -> Model:
    """Raises BodyRefused: 400 for what is not JSON, 422 for JSON that does not fit the model."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BodyRefused(400, f"Failed to parse the request body as JSON: {reason}") from None
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"]) or "."
        raise BodyRefused(
            422,
            f"Failed to deserialize the JSON body into the target type: {path}: {first['msg']}",
        ) from None
