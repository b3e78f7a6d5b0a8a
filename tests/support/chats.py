"""Chat requests for tests: bodies, tools, and a model that answers one thing after another."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from support.edge_server import EdgeServer, parse_events
from support.scripted_engine import Play
from tiercel.wire.messages import TokenDelta
from tiercel.wire.request import GenerationRequest

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, CLOCK]
CALL = '{"name":"get_weather","arguments":{"city":"a \\"{b}\\" c","days":3}}'
ARGUMENTS = '{"city":"a \\"{b}\\" c","days":3}'
NO_CALL = '{"name":"no_tool"}'


def chat(server: EdgeServer, **fields: Any) -> httpx.Response:
    """POST a chat; `messages` are HI unless given."""
    return server.post(CHAT, {"messages": HI, **fields})


def message(server: EdgeServer, **fields: Any) -> dict[str, Any]:
    """The first choice of a chat that must be answered."""
    response = chat(server, **fields)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def chunks(server: EdgeServer, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a chat stream, which must end as one."""
    response = chat(server, stream=True, **fields)
    assert response.status_code == 200, response.text
    return parse_chunks(response.content)


def parse_chunks(content: bytes) -> list[dict[str, Any]]:
    """The chunks before `[DONE]`, which must be the end."""
    done = b"data: [DONE]\n\n"
    assert content.endswith(done) and content.count(done) == 1
    return parse_events(content.removesuffix(done))


def refusal(response: httpx.Response, status: int = 422) -> dict[str, Any]:
    """The error of an answer in OpenAI's shape, after checking that shape; with `error_type`."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = json.loads(response.content)
    assert set(document) == {"error", "error_type"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    return {**document["error"], "error_type": document["error_type"]}


def in_turn(plays: Sequence[Play]) -> Play:
    """The first request is answered by the first play, and so on; the last one stays."""
    waiting = list(plays)

    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        chosen = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        async for delta in chosen(request):
            yield delta

    return play
