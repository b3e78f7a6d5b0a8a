"""An answer in one piece: collect the whole generation, unless its client leaves meanwhile."""

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from tiercel.api.edge import Edge, outcome
from tiercel.api.encoding import response_json
from tiercel.api.generation import GeneratedToken
from tiercel.api.record import RequestRecord
from tiercel.api.schema import GenerateRequest
from tiercel.api.validation import check_shape

Result = TypeVar("Result")


async def native_answer(
    edge: Edge, body: GenerateRequest, record: RequestRecord, *, full_text: bool
) -> str:
    """The JSON of one generate response. Raises RequestError. Cancelling it aborts."""
    with outcome(record):
        check_shape(body.parameters, stream=False)
        with edge.admission.permit():
            generation = await edge.generation(body, record)
            tokens: list[GeneratedToken] = []
            async with aclosing(generation.deltas()) as deltas:
                async for more in deltas:
                    tokens += more
        return response_json(
            generation,
            tokens,
            generation.full_text(by_default=full_text),
            details=generation.details,
        )


async def unless_gone(receive: Receive, work: Coroutine[object, object, Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves: then ClientDisconnect.

    To be called when the request's body has been read: `receive` then only tells of the end.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        watcher.cancel()
        task.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
