"""Server-sent events of a generation: one chunk per delta, comments while it is silent.

The body iterator owns the permit and the generation; it ends them however the stream ends. A
client that does not read is cut off after the send timeout.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from tiercel.api.answer import unless_gone
from tiercel.api.edge import Edge, outcome
from tiercel.api.encoding import error_event, stream_tail, token_event
from tiercel.api.generation import GeneratedToken, Generation
from tiercel.api.options import EdgeOptions
from tiercel.api.record import RequestRecord
from tiercel.api.schema import GenerateRequest
from tiercel.api.validation import Prompt, check_shape
from tiercel.errors import IncompleteGeneration, IncompleteGenerationStream, RequestError
from tiercel.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class KeepAlive(ServerSentEvent):
    """The contract's comment: a lone colon and an empty line."""

    def encode(self) -> bytes:
        """The same bytes each time."""
        return b":\n\n"


class EventStream(EventSourceResponse):
    """A 200 whose body is `chunks`: each one or more whole events.

    A send that takes longer than `send_timeout_s` cuts the client off. One timer per stream looks
    after that: sse_starlette's own timeout takes 9 us of every send, six of them for the timer.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        *,
        keep_alive_s: float,
        send_timeout_s: float,
    ) -> None:
        super().__init__(
            chunks,
            # Named here because starlette would add a charset.
            headers={"content-type": "text/event-stream", "cache-control": "no-cache", **headers},
            ping=keep_alive_s,
            ping_message_factory=KeepAlive,
        )
        del self.headers["connection"]  # sse_starlette's; whether it is kept, the protocol knows
        self._send_timeout_s = send_timeout_s
        self._sending_since_s: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See starlette. A client that stopped reading is no fault of the server's."""

        async def timed_send(message: Message) -> None:
            self._sending_since_s = time.monotonic()
            await send(message)
            self._sending_since_s = None

        metrics: Metrics = scope["app"].state.metrics
        metrics.server.streams_open.inc()
        try:
            async with asyncio.timeout(None) as cut:
                watch = asyncio.ensure_future(self._watch(cut))
                try:
                    await super().__call__(scope, receive, timed_send)
                finally:
                    watch.cancel()
        except TimeoutError:
            metrics.requests.slow_clients.inc()
            logger.info("a client did not read its stream and is cut off")
        finally:
            metrics.server.streams_open.dec()

    async def _watch(self, cut: asyncio.Timeout) -> None:
        """Expires `cut` when a send hangs; up to a quarter of the timeout late."""
        while True:
            await asyncio.sleep(self._send_timeout_s / 4)
            since_s = self._sending_since_s
            if since_s is not None and time.monotonic() - since_s > self._send_timeout_s:
                cut.reschedule(asyncio.get_running_loop().time())
                return


def let_streams_finish() -> None:
    """On SIGTERM sse_starlette would cut all streams of the process: draining is ours to decide."""
    AppStatus.enable_automatic_graceful_drain = False


async def begun(
    receive: Receive,
    chunks: AsyncGenerator[bytes, None],
    failed: Callable[[RequestError], bytes],
    options: EdgeOptions,
    headers: Callable[[], dict[str, str]],
) -> EventStream:
    """The stream of the chunks as `started` makes them; `headers` are asked for when it is."""
    content = await started(receive, chunks, failed, wait_s=options.keep_alive_s)
    return EventStream(
        content,
        headers(),
        keep_alive_s=options.keep_alive_s,
        send_timeout_s=options.send_timeout_s,
    )


async def started(
    receive: Receive,
    chunks: AsyncGenerator[bytes, None],
    failed: Callable[[RequestError], bytes],
    *,
    wait_s: float,
) -> AsyncGenerator[bytes, None]:
    """The same chunks, once the first one is there: what is raised before it is raised here.

    So an error before the first event is an answer of its own; a RequestError after it becomes the
    last event, as `failed` writes it. Waits `wait_s` at most: then the headers go out, because a
    silent connection is cut by proxies. ClientDisconnect as in `unless_gone`.
    """
    first = asyncio.ensure_future(anext(chunks, b""))
    try:
        await unless_gone(receive, asyncio.wait((first,), timeout=wait_s))
        if first.done():
            first.result()
    except BaseException:
        await _given_up(first, chunks)
        raise
    return _resumed(first, chunks, failed)


async def _resumed(
    first: asyncio.Future[bytes],
    chunks: AsyncGenerator[bytes, None],
    failed: Callable[[RequestError], bytes],
) -> AsyncGenerator[bytes, None]:
    try:
        yield await first
        async for chunk in chunks:
            yield chunk
    except RequestError as error:
        yield failed(error)
    finally:
        await _given_up(first, chunks)


async def _given_up(first: asyncio.Future[bytes], chunks: AsyncGenerator[bytes, None]) -> None:
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await chunks.aclose()


async def native_events(
    edge: Edge, body: GenerateRequest, record: RequestRecord, *, full_text: bool
) -> AsyncGenerator[bytes, None]:
    """Everything about one native stream. Errors are its last event. Closing it early aborts."""
    try:
        with outcome(record):
            check_shape(body.parameters, edge.options, stream=True)
            with edge.admission.permits(1):
                request = await edge.validated(Prompt(body.inputs), body.parameters, record)
                generation = edge.start(request, record)
                async with aclosing(generation.deltas()) as deltas:
                    async for tokens in deltas:
                        yield _events(generation, tokens, body, full_text=full_text)
    except IncompleteGeneration:
        yield error_event(IncompleteGenerationStream()).encode()
    except RequestError as error:
        yield error_event(error).encode()


def _events(
    generation: Generation, tokens: list[GeneratedToken], body: GenerateRequest, *, full_text: bool
) -> bytes:
    """The events of one delta, to be sent as one chunk."""
    index = generation.generated_tokens - len(tokens)
    if generation.finish_reason is None:
        return "".join(
            token_event(index + nth, token) for nth, token in enumerate(tokens, 1)
        ).encode()
    *before, last = tokens
    events = [token_event(index + nth, token) for nth, token in enumerate(before, 1)]
    tail = stream_tail(
        generation,
        generation.full_text(by_default=full_text),
        details=body.parameters.details,
    )
    events.append(token_event(generation.generated_tokens, last, tail))
    return "".join(events).encode()
