"""Short ways to ask a real server, over the benchmark's raw client."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tiercel.bench.client import Client, Exchange, Reply
from tiercel.bench.server import ServerProcess

Result = TypeVar("Result")


def client_of(server: ServerProcess) -> Client:
    return Client(server.host, server.port)


def run(work: Coroutine[Any, Any, Result], timeout_s: float = 60.0) -> Result:
    """Run `work` on a loop of its own. Raises TimeoutError."""

    async def limited() -> Result:
        return await asyncio.wait_for(work, timeout_s)

    return asyncio.run(limited())


def body(inputs: str, **parameters: Any) -> dict[str, Any]:
    return {"inputs": inputs, "parameters": parameters}


async def open_stream(client: Client, inputs: str, **parameters: Any) -> Exchange:
    return await client.open("/generate_stream", body(inputs, **parameters))


async def stream(client: Client, inputs: str, **parameters: Any) -> Reply:
    return await client.post("/generate_stream", body(inputs, **parameters))


async def generate(client: Client, inputs: str, **parameters: Any) -> Any:
    """The JSON answer of `/generate`. Fails on any other status than 200."""
    reply = await client.post("/generate", body(inputs, **parameters))
    assert reply.status == 200, reply.body
    return reply.json()


def ids(reply: Reply) -> list[int]:
    """Token ids of a stream. Fails when it ended with an error."""
    data = [event.data for event in reply.events()]
    assert data, f"no events: status {reply.status}"
    assert "error" not in data[-1], data[-1]
    return [item["token"]["id"] for item in data]
