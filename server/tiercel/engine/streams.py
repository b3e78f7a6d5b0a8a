"""The API process's side of all running generations: which request waits for which delta.

Independent of the transport. Every method is called on the event loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable

from msgspec.structs import replace

from tiercel.wire.messages import Abort, Submit, ToEngine, TokenDelta
from tiercel.wire.request import GenerationRequest

# A stream that holds this many tokens, and has not been read for this long, has no reader.
MAX_BUFFERED_TOKENS = 256
SLOW_CLIENT_S = 20.0


class _Stream:
    """The deltas of one request that nobody has read yet."""

    __slots__ = ("buffered_tokens", "deltas", "ended", "last_read_s", "waiter")

    def __init__(self) -> None:
        self.deltas: deque[TokenDelta] = deque()
        self.buffered_tokens = 0
        self.ended = False  # the engine has no more to say about it
        self.last_read_s = time.monotonic()
        self.waiter: asyncio.Future[None] | None = None

    def push(self, delta: TokenDelta) -> None:
        self.deltas.append(delta)
        self.buffered_tokens += len(delta.tokens)
        self.ended = delta.finish_reason is not None or delta.error is not None
        self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def overdue(self, now: float) -> bool:
        return self.buffered_tokens > MAX_BUFFERED_TOKENS and now - self.last_read_s > SLOW_CLIENT_S

    def take(self) -> TokenDelta:
        """All buffered deltas as one: a reader that lags gets its tokens together."""
        self.buffered_tokens = 0
        self.last_read_s = time.monotonic()
        first = self.deltas.popleft()
        if not self.deltas:
            return first
        rest, self.deltas = self.deltas, deque()
        last = rest[-1]
        return replace(
            first,  # what comes with the first delta only stays as it is
            tokens=[*first.tokens, *(token for delta in rest for token in delta.tokens)],
            finish_reason=last.finish_reason,
            error=last.error,
            error_type=last.error_type,
        )


class StreamTable:
    """Requests in flight by id. `send` carries messages to the engine and never blocks."""

    def __init__(self, send: Callable[[ToEngine], None]) -> None:
        self._send = send
        self._streams: dict[int, _Stream] = {}
        self._broken: str | None = None

    def __len__(self) -> int:
        return len(self._streams)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """See EngineClient.generate."""
        if self._broken is not None:
            yield _error(request.id, self._broken)
            return
        stream = self._streams[request.id] = _Stream()
        try:
            self._send(Submit([request]))
            while True:
                if not stream.deltas:
                    stream.waiter = asyncio.get_running_loop().create_future()
                    await stream.waiter
                    stream.waiter = None
                delta = stream.take()
                yield delta
                if delta.finish_reason is not None or delta.error is not None:
                    return
        finally:
            del self._streams[request.id]
            if not stream.ended:
                self._send(Abort([request.id]))

    def deliver(self, deltas: Iterable[TokenDelta]) -> None:
        """Hand each delta to its stream. Ids nobody waits for any more are dropped."""
        now = 0.0
        for delta in deltas:
            stream = self._streams.get(delta.request_id)
            if stream is None or stream.ended:
                continue
            stream.push(delta)
            if stream.buffered_tokens > MAX_BUFFERED_TOKENS:
                now = now or time.monotonic()
                if stream.overdue(now) and not stream.ended:
                    slow = "the client reads too slowly"
                    stream.push(_error(delta.request_id, slow, "slow_client"))
                    self._send(Abort([delta.request_id]))

    def fail_all(self, message: str) -> None:
        """The engine is gone: every stream ends with an error, and so does every later one."""
        self._broken = message
        for request_id, stream in self._streams.items():
            if not stream.ended:
                stream.push(_error(request_id, message))


def _error(request_id: int, message: str, error_type: str = "generation") -> TokenDelta:
    return TokenDelta(request_id, [], error=message, error_type=error_type)
