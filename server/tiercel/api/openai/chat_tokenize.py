"""`/chat_tokenize`: the prompt that a chat becomes, and its tokens. Generates nothing.

TGI's route: its errors have TGI's shape.
"""

from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from tiercel.api.answer import unless_gone
from tiercel.api.body import read_model
from tiercel.api.edge import Edge
from tiercel.api.encoding import json_string
from tiercel.api.openai.prompt import chat_prompt
from tiercel.api.openai.schema import ChatRequest
from tiercel.api.openai.tools import tool_use
from tiercel.api.openapi import takes
from tiercel.api.schema import ErrorBody, TokenizedBody
from tiercel.api.tokenized import Tokenizing, tokenized_answer
from tiercel.api.validation import Prompt

_ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorBody, "description": "The template refused the messages"},
    429: {"model": ErrorBody, "description": "The server is full"},
    503: {"model": ErrorBody, "description": "The server is shutting down"},
}


class ChatTokenizedBody(BaseModel):
    """The answer. The tokens are those of the text as it is, with none added in front."""

    tokenize_response: list[TokenizedBody]
    templated_text: str


class ChatTokenizeRoute:
    """The handler over one edge."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def add_to(self, app: FastAPI) -> None:
        """Register the route."""
        app.add_api_route(
            "/chat_tokenize",
            self.chat_tokenize,
            methods=["POST"],
            response_model=None,
            tags=["Text generation"],
            summary="The prompt that a chat becomes, and its tokens",
            responses={200: {"model": ChatTokenizedBody}, **_ERRORS},
            openapi_extra=takes(ChatRequest),
        )

    async def chat_tokenize(self, request: Request) -> Response:
        """POST `/chat_tokenize`. Only what shapes the prompt is looked at; no metrics."""
        self._edge.check_serving()
        body = await read_model(request, ChatRequest, self._edge.options.payload_limit)
        prompt = await unless_gone(request.receive, self._prompt(body))
        work = Tokenizing(
            prompt.text,
            prompt.add_special_tokens,
            before='{"tokenize_response":[',
            after=f'],"templated_text":{json_string(prompt.text)}}}',
        )
        return await tokenized_answer(self._edge, request.receive, work)

    async def _prompt(self, body: ChatRequest) -> Prompt:
        use = tool_use(body)
        tools = () if use is None else use.tools
        return await chat_prompt(self._edge, body.messages, tools, body.tool_prompt)
