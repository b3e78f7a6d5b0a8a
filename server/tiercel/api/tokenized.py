"""The answers of `/tokenize` and `/chat_tokenize`, which no limit bounds: long ones in pieces.

A token of one byte becomes fifty of JSON, and more in memory. So of long texts one is worked on at
a time, and neither its offsets nor its JSON are ever there as a whole.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from tiercel.api.answer import unless_gone
from tiercel.api.edge import Edge
from tiercel.api.encoding import tokenized_json
from tiercel.text.tokenizer import TextToken

logger = logging.getLogger(__name__)

LONG_CHARACTERS = 32_768
PIECE_TOKENS = 2_048  # 100 kB of JSON, some milliseconds
JSON = "application/json"


@dataclass(frozen=True)
class Tokenizing:
    """A text, and what stands around its tokens in the answer."""

    text: str
    add_special_tokens: bool = True
    before: str = "["
    after: str = "]"


async def tokenized_answer(edge: Edge, receive: Receive, work: Tokenizing) -> Response:
    """The tokens of a text. Raises ClientDisconnect."""
    if len(work.text) <= LONG_CHARACTERS:

        def tokenized() -> bytes:
            return f"{work.before}{tokenized_json(_tokens(edge, work))}{work.after}".encode()

        return Response(await edge.in_thread(tokenized), media_type=JSON)
    pieces = _pieces(edge, work)

    async def first_piece() -> bytes:
        return await anext(pieces)

    first = await unless_gone(receive, first_piece())
    return _LongAnswer(first, pieces, edge.options.send_timeout_s)


async def _pieces(edge: Edge, work: Tokenizing) -> AsyncGenerator[bytes, None]:
    async with edge.long_text:
        tokens = await edge.in_thread(lambda: _tokens(edge, work))
        opening = work.before
        while piece := await edge.in_thread(
            lambda: tokenized_json(islice(tokens, PIECE_TOKENS)).encode()
        ):
            yield opening.encode() + piece
            opening = ","
        yield work.after.encode()


def _tokens(edge: Edge, work: Tokenizing) -> Iterator[TextToken]:
    return edge.tokenizer.encode_lazily(work.text, add_special_tokens=work.add_special_tokens)


class _LongAnswer(StreamingResponse):
    """A client that does not read for `send_timeout_s` is cut off: others wait for their turn."""

    def __init__(
        self, first: bytes, rest: AsyncGenerator[bytes, None], send_timeout_s: float
    ) -> None:
        async def pieces() -> AsyncGenerator[bytes, None]:
            yield first
            async for piece in rest:
                yield piece

        super().__init__(pieces(), media_type=JSON)
        self._rest = rest
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See starlette."""

        async def timed_send(message: Message) -> None:
            async with asyncio.timeout(self._send_timeout_s):
                await send(message)

        try:
            async with aclosing(self._rest):
                await super().__call__(scope, receive, timed_send)
        except TimeoutError:
            logger.info("a client did not read its tokens and is cut off")
