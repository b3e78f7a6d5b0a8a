"""Vertex AI: `instances` in, `predictions` out, at `/vertex` and at the paths of AIP_*.

Its variables are in `platform_variables.py`.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.routing import compile_path

from tiercel.api.answer import unless_gone
from tiercel.api.auth import ROUTES
from tiercel.api.body import BodyRefused, fit, read_model
from tiercel.api.edge import Edge
from tiercel.api.encoding import json_string
from tiercel.api.openai.errors import speak_openai
from tiercel.api.openai.schema import ChatRequest
from tiercel.api.openapi import ERRORS, takes
from tiercel.api.platforms.prompts import Asked, texts
from tiercel.api.schema import STRICT, ErrorBody, GenerateRequest
from tiercel.api.validation import Prompt
from tiercel.errors import (
    ConfigError,
    GenerationError,
    IncompleteGeneration,
    NoInstances,
    PredictionFailed,
)

MAX_INSTANCES = 4_096  # what is read; how many are answered is --max-client-batch-size
HEALTH_ROUTES = ("/", "/health", "/ping")
PREDICT_ROUTE = "/vertex"


class PredictRequest(BaseModel):
    """Each instance is a generate request, or a chat request where it has `messages`."""

    model_config = STRICT

    instances: Annotated[list[dict[str, Any]], Field(max_length=MAX_INSTANCES)]


class PredictResponse(BaseModel):
    """One text per instance, in their order."""

    predictions: list[str]


def check_routes(health: str | None, predict: str | None) -> None:
    """Vertex AI's paths must be its own. Raises ConfigError naming variable and path."""
    if health not in (None, *HEALTH_ROUTES):
        _check_free("AIP_HEALTH_ROUTE", f"GET {health}")
    if predict not in (None, PREDICT_ROUTE):
        _check_free("AIP_PREDICT_ROUTE", f"POST {predict}")


def _check_free(variable: str, route: str) -> None:
    method, _, path = route.partition(" ")
    for known in ROUTES:
        known_method, _, known_path = known.partition(" ")
        if known_method == method and compile_path(known_path)[0].match(path):
            raise ConfigError(
                f"{variable}: {path} is taken by another route ({known}); choose another path"
            )


class VertexRoutes:
    """Handlers over one edge."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def add_to(self, app: FastAPI, health: Callable[[], Awaitable[Response]]) -> None:
        """Register `/vertex` and the paths of AIP_*. `health` answers the probe."""
        options = self._edge.options
        if options.health_route not in (None, *HEALTH_ROUTES):
            app.add_api_route(
                options.health_route, health, methods=["GET"], include_in_schema=False
            )
        if options.predict_route not in (None, PREDICT_ROUTE):
            app.add_api_route(
                options.predict_route, self.predict, methods=["POST"], include_in_schema=False
            )
        failed: dict[int | str, dict[str, Any]] = {
            500: {"model": ErrorBody, "description": "The generation failed"}
        }
        app.add_api_route(
            PREDICT_ROUTE,
            self.predict,
            methods=["POST"],
            response_model=None,
            tags=["Vertex AI"],
            summary="Generate for several instances",
            responses={200: {"model": PredictResponse}, **ERRORS, **failed},
            openapi_extra=takes(PredictRequest),
        )

    async def predict(self, request: Request) -> Response:
        """Instances run side by side. Their parameters are those of `/generate`, but `do_sample` \
is true where it is not given."""
        edge = self._edge
        speak_openai(request.scope, None)
        edge.check_serving()
        body = await read_model(request, PredictRequest, edge.options.payload_limit)
        if not body.instances:
            raise NoInstances
        asked = [_asked(each, nth) for nth, each in enumerate(body.instances)]
        record = edge.record(PREDICT_ROUTE, request.scope)
        try:
            predictions = await unless_gone(request.receive, texts(edge, record, asked))
        except (GenerationError, IncompleteGeneration) as error:
            raise PredictionFailed from error
        content = f'{{"predictions":[{",".join(map(json_string, predictions))}]}}'
        return Response(content.encode(), media_type="application/json")


def _asked(instance: dict[str, Any], nth: int) -> Asked | ChatRequest:
    """Raises BodyRefused for an instance that is neither."""
    try:
        if "messages" in instance and "inputs" not in instance:
            return fit(instance, ChatRequest)
        body = fit(instance, GenerateRequest)
    except BodyRefused as refused:
        sentence = str(refused).replace("type: ", f"type: instances.{nth}.", 1)
        raise BodyRefused(refused.status, sentence, f"instances.{nth}.{refused.param}") from None
    parameters = body.parameters
    if "do_sample" not in parameters.model_fields_set:
        parameters = parameters.model_copy(update={"do_sample": True})
    return Asked(Prompt(body.inputs), parameters)
