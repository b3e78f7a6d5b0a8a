"""An EngineClient whose sequences are written by the test: a fake at the seam of the HTTP edge."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable

from tiercel.engine.client import EngineHealth
from tiercel.engine.streams import StreamTable
from tiercel.wire.messages import (
    Abort,
    EngineReady,
    EngineStats,
    Submit,
    ToEngine,
    Token,
    TokenDelta,
)
from tiercel.wire.request import GenerationRequest

Play = Callable[[GenerationRequest], AsyncIterator[TokenDelta]]


def speak(
    ids: Iterable[int],
    *,
    gap_s: float = 0.0,
    first_s: float = 0.0,
    per_delta: int = 1,
    logprob: float = -0.5,
) -> Play:
    """A sequence that says `ids` again and again, and ends by EOS or length as the engine would."""
    said = list(ids)

    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        await asyncio.sleep(first_s)
        index = 0
        while True:
            tokens: list[Token] = []
            reason = None
            while len(tokens) < per_delta and reason is None:
                token_id = said[index % len(said)]
                index += 1
                tokens.append(_token(token_id, logprob, request))
                if index == request.max_new_tokens:
                    reason = "length"
                elif token_id in request.stop_token_ids:
                    reason = "eos_token"
            first = index == len(tokens)
            yield TokenDelta(
                request.id,
                tokens,
                reason,
                queue_s=0.001 if first else None,
                prompt_logprobs=_prompt_logprobs(request) if first else None,
            )
            if reason is not None:
                return
            await asyncio.sleep(gap_s)

    return play


def _token(token_id: int, logprob: float, request: GenerationRequest) -> Token:
    count = request.sampling.top_n_tokens
    return Token(
        token_id,
        logprob,
        [token_id, *range(100, 99 + count)] if count else [],
        [logprob - rank for rank in range(count)],
    )


def _prompt_logprobs(request: GenerationRequest) -> list[float | None] | None:
    if not request.prompt_logprobs:
        return None
    return [None, *(-float(position) for position in range(1, len(request.token_ids)))]


class ScriptedEngine:
    """See EngineClient. `play` may be replaced: it then speaks for later requests."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.requests: list[GenerationRequest] = []
        self.aborted: list[int] = []
        self.spoken_tokens = 0
        self.is_healthy = True
        self._table = StreamTable(self._send)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def ready(self) -> EngineReady:
        raise AssertionError("nobody asks: the edge has its limits from its options")

    @property
    def stats(self) -> EngineStats | None:
        return None

    @property
    def running(self) -> int:
        """Sequences that have neither ended nor been aborted."""
        return len(self._tasks)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        return self._table.generate(request)

    def health(self) -> EngineHealth:
        return EngineHealth(self.is_healthy, "" if self.is_healthy else "the test says so")

    def _send(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            for request in message.requests:
                self.requests.append(request)
                self._tasks[request.id] = asyncio.ensure_future(self._speak(request))
        elif isinstance(message, Abort):
            for request_id in message.request_ids:
                self.aborted.append(request_id)
                if request_id in self._tasks:
                    self._tasks[request_id].cancel()

    async def _speak(self, request: GenerationRequest) -> None:
        try:
            async for delta in self.play(request):
                self.spoken_tokens += len(delta.tokens)
                self._table.deliver([delta])
        finally:
            del self._tasks[request.id]
