"""EngineClient with the engine in a thread of the same process: for tests and embedding.

Same loop, same messages, no socket and no second process; so no isolation from its faults either.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable

from tiercel.engine.assemble import assemble
from tiercel.engine.client import EngineHealth
from tiercel.engine.streams import StreamTable
from tiercel.wire.messages import (
    EngineReady,
    EngineStats,
    EngineStep,
    Shutdown,
    ToEngine,
    TokenDelta,
)
from tiercel.wire.options import EngineOptions
from tiercel.wire.request import GenerationRequest

logger = logging.getLogger(__name__)


class QueueInbox:
    """Messages to the engine from a queue."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()

    def put(self, message: ToEngine) -> None:
        self._queue.put(message)

    def receive(self, wait_s: float) -> list[ToEngine]:
        """See core.Inbox."""
        messages: list[ToEngine] = []
        try:
            if wait_s > 0:
                messages.append(self._queue.get(timeout=wait_s))
            while True:
                messages.append(self._queue.get_nowait())
        except queue.Empty:
            return messages


class InlineEngine:
    """See EngineClient. Make it on the event loop; `close` ends the thread."""

    def __init__(
        self,
        options: EngineOptions,
        on_step: Callable[[EngineStep], None] = lambda _: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_step = on_step
        self._inbox = QueueInbox()
        self._streams = StreamTable(self._inbox.put)
        self._stats: EngineStats | None = None
        self._broken = ""
        self.core, self._ready = assemble(options, self._emit)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> EngineReady:
        """See EngineClient."""
        return self._ready

    @property
    def stats(self) -> EngineStats | None:
        """See EngineClient."""
        return self._stats

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """See EngineClient."""
        return self._streams.generate(request)

    def health(self) -> EngineHealth:
        """See EngineClient."""
        return EngineHealth(not self._broken, self._broken)

    def close(self) -> None:
        """End the engine's thread."""
        self._inbox.put(Shutdown())
        self._thread.join()

    def _run(self) -> None:
        try:
            self.core.run(self._inbox)
        except Exception as error:
            logger.exception("the engine failed")
            self._loop.call_soon_threadsafe(self._fail, f"{type(error).__name__}: {error}")

    def _fail(self, message: str) -> None:
        self._broken = message
        self._streams.fail_all(message)

    def _emit(self, message: EngineStep) -> None:
        self._loop.call_soon_threadsafe(self._deliver, message)

    def _deliver(self, message: EngineStep) -> None:
        self._stats = message.stats
        self._streams.deliver(message.deltas)
        self._on_step(message)
