"""Registers the routes of all platforms over one edge."""

from fastapi import FastAPI

from tiercel.api.edge import Edge
from tiercel.api.native import NativeRoutes
from tiercel.api.openai.chat import ChatRoutes
from tiercel.api.openai.completion_schema import CompletionRequest
from tiercel.api.openai.completions import CompletionRoutes
from tiercel.api.openai.schema import ChatRequest
from tiercel.api.platform import PlatformRoutes
from tiercel.api.platforms.kserve import KServeRoutes
from tiercel.api.platforms.sagemaker import SageMakerRoutes, Shape
from tiercel.api.platforms.vertex import VertexRoutes
from tiercel.api.schema import LegacyGenerateRequest


def add_platform_routes(app: FastAPI, edge: Edge) -> None:
    """Probes, SageMaker, Vertex AI and KServe. After all other routes: AIP_* may not shadow one."""
    probes = PlatformRoutes(edge)
    probes.add_to(app)
    completions = CompletionRoutes(edge).completions
    shapes = {
        "inputs": Shape(LegacyGenerateRequest, NativeRoutes(edge).legacy),
        "messages": Shape(ChatRequest, ChatRoutes(edge).chat, "/v1/chat/completions"),
        "prompt": Shape(CompletionRequest, completions, "/v1/completions"),
    }
    SageMakerRoutes(edge, shapes).add_to(app)
    KServeRoutes(edge).add_to(app)
    VertexRoutes(edge).add_to(app, probes.health)
