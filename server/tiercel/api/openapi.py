"""The OpenAPI description. Bodies are read by `body.py`, so FastAPI cannot find their schemas."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tiercel.api.schema import GenerateRequest, LegacyGenerateRequest

PATH = "/api-doc/openapi.json"
_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (GenerateRequest, LegacyGenerateRequest)


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route whose JSON body is a `model`."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def described(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """A replacement for `app.openapi` that knows the bodies."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, bodies = models_json_schema(
                [(model, "validation") for model in _BODIES], ref_template=_REF
            )
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            components.update(bodies["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    return openapi
