"""The routes that platforms ask: `/health`, `/ping`, GET `/`, `/info`, `/metrics`."""

from enum import Enum
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

import tiercel
from tiercel.api.edge import Edge
from tiercel.api.encoding import document_json
from tiercel.api.metrics import metrics_response
from tiercel.api.schema import ErrorBody
from tiercel.errors import Unhealthy


class InfoBody(BaseModel):
    """The answer of `/info`."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None
    model_dtype: str
    model_device_type: str
    max_input_length: int
    waiting_served_ratio: float
    max_batch_total_tokens: int
    max_waiting_tokens: int
    max_batch_size: int | None
    quantize: str | None


class PlatformRoutes:
    """Handlers over one edge."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def add_to(self, app: FastAPI) -> None:
        """Register the routes."""
        tags: list[str | Enum] = ["Platform"]
        add = partial(app.add_api_route, methods=["GET"], response_model=None, tags=tags)
        sick: dict[int | str, dict[str, Any]] = {
            503: {"model": ErrorBody, "description": "Not ready"}
        }
        for path in ("/health", "/ping", "/"):
            add(
                path,
                self.health,
                summary="200 if requests can be served",
                responses=sick,
                response_class=Response,
            )
        add(
            "/info",
            self.info,
            summary="The model and the limits",
            responses={200: {"model": InfoBody}},
        )
        add(
            "/metrics",
            self.metrics,
            summary="Prometheus metrics",
            response_class=PlainTextResponse,
        )

    async def health(self) -> Response:
        """Empty and 200, or 503. Answered from memory."""
        if not self._edge.healthy():
            raise Unhealthy
        return Response()

    async def info(self) -> Response:
        """TGI 3's fourteen keys, then those of TGI 1 and 2, then ours."""
        options = self._edge.options
        info: dict[str, Any] = {
            "model_id": options.model_id,
            "model_sha": options.model_sha,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": options.max_concurrent_requests,
            "max_best_of": options.max_best_of,
            "max_stop_sequences": options.max_stop_sequences,
            "max_input_tokens": options.max_input_tokens,
            "max_total_tokens": options.max_total_tokens,
            "validation_workers": options.validation_workers,
            "max_client_batch_size": options.max_client_batch_size,
            "router": "text-generation-router",
            "version": tiercel.__version__,
            "sha": None,
            "docker_label": options.docker_label,
            "model_dtype": options.model_dtype,
            "model_device_type": options.model_device_type,
            "max_input_length": options.max_input_tokens,
            "waiting_served_ratio": options.waiting_served_ratio,
            "max_batch_total_tokens": options.max_batch_total_tokens,
            "max_waiting_tokens": options.max_waiting_tokens,
            "max_batch_size": options.max_batch_size,
            "quantize": options.quantize,
        }
        return Response(document_json(info), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format, or OpenMetrics if that is asked for."""
        return await metrics_response(self._edge.metrics, request)
