"""The OpenAPI description. Bodies are read by `body.py`, so FastAPI cannot find their schemas.

What every route can answer besides its own answers (no key, unreadable body) is added here, once.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from tiercel.api.auth import ROUTES, Access
from tiercel.api.openai.chat_schema import ERRORS as OPENAI
from tiercel.api.openai.chat_schema import OpenAIErrorAnswer
from tiercel.api.schema import ErrorBody

PATH = "/api-doc/openapi.json"
_REF = "#/components/schemas/{model}"
_MODELS = "x-tiercel-models"  # of an operation, until `described` moves them to the components
_ABOUT = """\
Text generation with Falcon models. The routes are those of Hugging Face's \
text-generation-inference, of OpenAI, and of SageMaker, Vertex AI and KServe.

Errors of values are JSON; a body that cannot be read (400, 413, 415, and 422 for a wrong type) is \
answered in plain text, except below /v1. With API keys, all but the public routes need \
`Authorization: Bearer <key>`.
"""
# What a native route that generates can be answered with, besides what it was asked for.
ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorBody, "description": "A value out of its limits"},
    424: {"model": ErrorBody, "description": "The generation failed"},
    429: {"model": ErrorBody, "description": "The server is full"},
    503: {"model": ErrorBody, "description": "The server is shutting down"},
}
_OPENAI = "/v1/"
_PARAMETER = re.compile(r"\{(\w+)\}")
_REFUSALS: dict[int | str, object] = {
    400: "The body is not JSON",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    422: "A field is missing or has the wrong type",
}


def takes(*models: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route whose JSON body is one of the `models`."""
    schemas: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    refs = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    content = {"application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}}
    return {"requestBody": {"required": True, "content": content}, _MODELS: schemas}


def events(description: str) -> dict[str, object]:
    """The response of a route that answers with server-sent events."""
    return {
        "description": description,
        "content": {"text/event-stream": {}},  # OpenAPI 3.1 cannot describe single events
    }


def described(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """A replacement for `app.openapi` that knows the bodies and the refusals."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=_ABOUT,
                    routes=app.routes,
                )
            )
        return app.openapi_schema

    return openapi


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own: never answered here
        schemas.pop(name, None)
    for method, path, operation in _operations(document):
        schemas.update(operation.pop(_MODELS, {}))
        _add_path_parameters(path, operation)
        _add_refusals(path, operation)
        if "{" in path:  # a line break in a parameter, for one, is no such path
            operation["responses"].setdefault("404", {"description": "No such path"})
        route = f"{method.upper()} {path}"
        if _access(route) is not Access.PUBLIC:
            _add_key(path, operation)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def _access(route: str) -> Access:
    for known, access in ROUTES.items():
        if known.replace(":path}", "}") == route:
            return access
    return Access.DATA


def _add_path_parameters(path: str, operation: dict[str, Any]) -> None:
    """Handlers read them from the request, where FastAPI does not see them."""
    parameters = operation.setdefault("parameters", [])
    known = {parameter["name"] for parameter in parameters}
    for name in _PARAMETER.findall(path):
        if name not in known:
            schema = {"type": "string", "minLength": 1}
            parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    if not parameters:
        del operation["parameters"]


def _add_refusals(path: str, operation: dict[str, Any]) -> None:
    """What a body that cannot be read is answered with."""
    responses: dict[str, Any] = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    if "requestBody" not in operation:
        return
    kind, schema, refusals = "text/plain", {"type": "string"}, _REFUSALS
    if path.startswith(_OPENAI):
        kind, schema = "application/json", {"$ref": _REF.format(model=OpenAIErrorAnswer.__name__)}
        refusals = {**_REFUSALS, **{code: text["description"] for code, text in OPENAI.items()}}
    for status, description in refusals.items():
        response = responses.setdefault(str(status), {"description": description})
        response.setdefault("content", {}).setdefault(kind, {"schema": schema})


def _add_key(path: str, operation: dict[str, Any]) -> None:
    operation["security"] = [{}, {"key": []}]
    if not path.startswith(_OPENAI):
        answer = {"description": "The server asks for a key, and this is none"}
        operation["responses"].setdefault("401", answer)
