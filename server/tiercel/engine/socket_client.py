"""EngineClient over two zmq ipc sockets: the API process's end of the line.

Owns the sockets and the engine's last known state. Who starts and watches the process is
`supervisor.py`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import zmq

from tiercel.engine.client import EngineHealth
from tiercel.engine.paths import from_engine, to_engine
from tiercel.engine.streams import StreamTable
from tiercel.errors import EngineDied, StartupError
from tiercel.wire.messages import (
    EngineFailed,
    EngineReady,
    EngineStats,
    EngineStep,
    FromEngine,
    Heartbeat,
    LoadProgress,
    Shutdown,
    ToEngine,
    TokenDelta,
    decode_from_engine,
    encode,
)
from tiercel.wire.request import GenerationRequest

logger = logging.getLogger(__name__)

MESSAGES_PER_TURN = 256  # then the event loop serves others too


class SocketEngineClient:
    """See EngineClient. All methods are called on one event loop."""

    def __init__(
        self,
        directory: Path,
        *,
        on_step: Callable[[EngineStep], None],
        on_progress: Callable[[LoadProgress], None],
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._outgoing = self._context.socket(zmq.PUSH)
        # Bounded by the admission limit at the edge, so it may never block the event loop.
        self._outgoing.set_hwm(0)
        self._outgoing.bind(to_engine(directory))
        self._incoming = self._context.socket(zmq.PULL)
        self._incoming.bind(from_engine(directory))
        self._on_step = on_step
        self._on_progress = on_progress
        self._streams = StreamTable(self._send)
        self._ready: asyncio.Future[EngineReady] = asyncio.get_running_loop().create_future()
        self._stats: EngineStats | None = None
        self._failure: EngineFailed | None = None
        self._broken: str | None = None
        self.defect: StartupError | None = None  # a message that could not be handled
        self._closed = False
        self._heard_s = time.monotonic()
        self._step_running_s = 0.0
        self._beat_s = self._heard_s  # of the last heartbeat, which told of the other ranks
        self._ranks_silent_s: list[float] = []
        asyncio.get_running_loop().add_reader(self._incoming.FD, self._receive)
        self._receive()

    @property
    def ready(self) -> EngineReady:
        """See EngineClient."""
        return self._ready.result()

    @property
    def stats(self) -> EngineStats | None:
        """See EngineClient."""
        return self._stats

    @property
    def failure(self) -> EngineFailed | None:
        """What the engine said about its own end, if it could."""
        return self._failure

    @property
    def in_flight(self) -> int:
        """Requests that somebody waits for."""
        return len(self._streams)

    @property
    def silent_s(self) -> float:
        """Seconds since anything was heard from the engine."""
        return time.monotonic() - self._heard_s

    def forgive(self, seconds: float) -> None:
        """Nothing could be heard for so long, through no fault of the engine."""
        self._heard_s += seconds
        self._beat_s += seconds

    @property
    def step_running_s(self) -> float:
        """How long the step in progress had taken at the last heartbeat."""
        return self._step_running_s

    def rank_silent_s(self, rank: int) -> float:
        """Seconds since anything was heard from a rank: by us from the first, by that from others.

        What the last heartbeat said has grown older since.
        """
        if not 0 < rank <= len(self._ranks_silent_s):
            return self.silent_s
        return self._ranks_silent_s[rank - 1] + time.monotonic() - self._beat_s

    async def wait_ready(self) -> EngineReady:
        """Returns when the engine can take requests; never if it cannot: see `failure`."""
        return await asyncio.shield(self._ready)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """See EngineClient."""
        return self._streams.generate(request)

    def health(self) -> EngineHealth:
        """See EngineClient."""
        if self._broken is not None:
            return EngineHealth(False, self._broken)
        if not self._ready.done():
            return EngineHealth(False, "the engine is starting")
        return EngineHealth(True)

    def fail(self, message: str) -> None:
        """The engine is gone: unhealthy from now on, and every stream ends with this message."""
        self._broken = message
        self._streams.fail_all(message)

    def end_streams(self, message: str) -> None:
        """Every stream ends with this message; the engine is as well as before."""
        self._streams.fail_all(message)

    def shutdown(self) -> None:
        """Ask the engine to end."""
        self._send(Shutdown())

    def close(self) -> None:
        """Give the sockets back."""
        self._closed = True
        self._broken = self._broken or "the engine is closed"
        asyncio.get_running_loop().remove_reader(self._incoming.FD)
        self._incoming.close(linger=0)
        self._outgoing.close(linger=200)
        self._context.term()

    def _send(self, message: ToEngine) -> None:
        if self._broken is None:
            with contextlib.suppress(zmq.Again):  # no peer: the engine is gone, `fail` follows
                self._outgoing.send(encode(message), zmq.NOBLOCK)

    def _receive(self) -> None:
        """Take in what has arrived: the descriptor tells of changes, not of what is left."""
        if self._closed or self.defect is not None:
            return
        for _ in range(MESSAGES_PER_TURN):
            try:
                data = self._incoming.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard_s = time.monotonic()
            try:
                self._handle(decode_from_engine(data))
            except Exception as error:
                logger.exception("a message of the engine could not be handled")
                self.defect = EngineDied(f"an engine message broke: {type(error).__name__}")
                return
        asyncio.get_running_loop().call_soon(self._receive)

    def _handle(self, message: FromEngine) -> None:
        if isinstance(message, EngineStep):
            self._step_running_s = 0.0
            self._stats = message.stats
            self._streams.deliver(message.deltas)
            self._on_step(message)
        elif isinstance(message, Heartbeat):
            self._step_running_s = message.step_running_s
            self._ranks_silent_s, self._beat_s = message.ranks_silent_s, self._heard_s
        elif isinstance(message, LoadProgress):
            self._on_progress(message)
        elif isinstance(message, EngineReady):
            self._ready.set_result(message)
        elif isinstance(message, EngineFailed):
            self._failure = message
