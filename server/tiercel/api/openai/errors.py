"""Errors in OpenAI's shape, for every path under /v1 and for routes that answer like one of those.

`type` says whose fault it is, `code` is for machines, `param` names the field where one is known;
TGI's `error_type` stands beside the object. Statuses are the error's own, also inside a stream.
"""

import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.types import Scope

from tiercel.api.body import BodyRefused
from tiercel.api.encoding import json_or_null, json_string
from tiercel.errors import RequestError, ToolError, ValidationError

DONE = "data: [DONE]\n\n"
_PREFIX = "/v1/"
_MARK = "tiercel.openai"
_NAMES = {
    "/v1/chat/completions": {
        "inputs": "messages",
        "max_new_tokens": "max_tokens",
        "top_n_tokens": "top_logprobs",
        "grammar": "response_format",
    },
    "/v1/completions": {"inputs": "prompt", "max_new_tokens": "max_tokens"},
}
_CHAT = "/v1/chat/completions"
_GRAMMAR = "error: grammar is"
_FIELD = re.compile(r"`([A-Za-z_][\w.\[\]]*)`")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    400: "invalid_json",
    401: "invalid_api_key",
    403: "insufficient_permissions",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    422: "invalid_value",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
}
_SENTENCES = {
    401: "A valid API key is needed: send the header `Authorization: Bearer <key>`",
    403: "This route needs an admin key",
    404: "There is nothing at this path",
    405: "This path does not take this method",
}


def speak_openai(scope: Scope, route: str | None) -> None:
    """Errors of this request are answered as `route`, one of OpenAI's, answers them; None is TGI's.

    Only for requests whose path does not say it: SageMaker's, or Vertex AI's own path below /v1.
    """
    scope[_MARK] = route


def speaks_openai(request: Request) -> str | None:
    """The route whose error shape this request is to be answered in, or None for TGI's."""
    if _MARK in request.scope:
        marked: str | None = request.scope[_MARK]
        return marked
    path: str = request.scope["path"]
    return path if path.startswith(_PREFIX) else None


def error_document(error: RequestError, route: str) -> str:
    """The body of a failed request. Fields have the names that the route's users know."""
    return f'{{"error":{_object(error, route)},"error_type":{json_string(error.error_type)}}}'


def error_events(error: RequestError, route: str) -> bytes:
    """The last two events of a stream that failed after its first one."""
    inner = _object(error, route)[:-1]
    error_type = json_string(error.error_type)
    return (
        f'data: {{"error":{inner},"http_status_code":{error.status}}},'
        f'"error_type":{error_type}}}\n\n{DONE}'
    ).encode()


def refusal_document(refused: BodyRefused) -> str:
    """The body for a request whose own body cannot be read."""
    param = None if refused.param == "." else refused.param  # the body as a whole is no field
    return _document(str(refused), refused.status, param, "validation")


def status_document(status: int) -> str:
    """The body for what is answered before any route: 401, 403, 404, 405.

    TGI has no body there and so no `error_type`; clients that map theirs must not take these for
    values that are out of their limits.
    """
    sentence = _SENTENCES.get(status, "The request cannot be answered")
    return _document(sentence, status, None, _CODES.get(status, "validation"))


def _document(message: str, status: int, param: str | None, error_type: str) -> str:
    inner = _inner(message, status, param, _CODES.get(status))
    return f'{{"error":{inner},"error_type":{json_string(error_type)}}}'


def _object(error: RequestError, route: str) -> str:
    message = _renamed(str(error), _NAMES.get(route, {}))
    field = None
    code: str | None = error.error_type.replace(" ", "_")
    if isinstance(error, ValidationError | ToolError):
        found = _FIELD.search(message)
        field = found[1] if found else None
    if isinstance(error, ValidationError):
        if field is None and _GRAMMAR in message and route == _CHAT:
            field = "response_format"
        code = "invalid_value"
        if " tokens" in message and "at most" in message and field in ("messages", "prompt"):
            code = "context_length_exceeded"  # the name by which clients know to shorten a chat
    elif error.status in (429, 503):
        code = _CODES[error.status]
    return _inner(message, error.status, field, code)


def _inner(message: str, status: int, param: str | None, code: str | None) -> str:
    fallback = "invalid_request_error" if status < 500 and status != 424 else "server_error"
    return (
        f'{{"message":{json_string(message)},"type":"{_TYPES.get(status, fallback)}",'
        f'"param":{json_or_null(param)},"code":{json_or_null(code)}}}'
    )


def _renamed(message: str, names: Mapping[str, str]) -> str:
    for name, known_as in names.items():
        message = message.replace(f"`{name}`", f"`{known_as}`")
    return message
