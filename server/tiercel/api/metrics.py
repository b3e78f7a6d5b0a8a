"""`/metrics`: the answer, and a small application with nothing else, for a port of its own."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tiercel.api.auth import Authentication, KeyRing, route_classes
from tiercel.api.identity import Identified
from tiercel.api.summary import Summarized
from tiercel.telemetry.exposition import CONTENT_TYPES, wanted_format
from tiercel.telemetry.metrics import Metrics


async def metrics_response(metrics: Metrics, request: Request) -> Response:
    """Text, or OpenMetrics if asked for. Rendered here: a thread would cost more than it takes."""
    kind = wanted_format(request.headers.get("accept", ""))
    return Response(metrics.page(kind), headers={"content-type": CONTENT_TYPES[kind]})


def create_metrics_app(metrics: Metrics, keys: KeyRing, *, protect_metrics: bool) -> Starlette:
    """GET `/metrics` under the same rule for keys as on the main port."""

    async def answer(request: Request) -> Response:
        return await metrics_response(metrics, request)

    classes = route_classes(protect_metrics=protect_metrics)
    return Starlette(
        routes=[Route("/metrics", answer, methods=["GET"])],
        middleware=[
            Middleware(Identified),
            Middleware(Summarized),
            Middleware(Authentication, keys=keys, classes=classes),
        ],
    )
