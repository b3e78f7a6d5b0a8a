"""`/v1/models` and `/v1/models/{id}`: the one model that is served."""

from functools import partial

from fastapi import FastAPI, Request, Response

from tiercel.api.edge import Edge
from tiercel.api.encoding import json_string
from tiercel.api.openai.chat_schema import OpenAIErrorAnswer
from tiercel.errors import ModelNotFound


class ModelRoutes:
    """Handlers over one edge."""

    def __init__(self, edge: Edge) -> None:
        self._id = edge.options.model_id

    def add_to(self, app: FastAPI) -> None:
        """Register the routes."""
        add = partial(app.add_api_route, methods=["GET"], response_model=None, tags=["OpenAI"])
        add("/v1/models", self.models, summary="The served model, in a list")
        add(
            "/v1/models/{model_id:path}",
            self.model,
            summary="The served model",
            responses={404: {"model": OpenAIErrorAnswer, "description": "Another model"}},
        )

    async def models(self) -> Response:
        """A list of one."""
        content = f'{{"object":"list","data":[{self._json()}]}}'
        return Response(content.encode(), media_type="application/json")

    async def model(self, request: Request) -> Response:
        """404 for any other name: a client that asks wants to know what there is."""
        asked = request.path_params["model_id"]
        if asked != self._id:
            raise ModelNotFound(asked, self._id)
        return Response(self._json().encode(), media_type="application/json")

    def _json(self) -> str:
        name = json_string(self._id)
        return f'{{"id":{name},"object":"model","created":0,"owned_by":{name}}}'
