"""EngineClient: all that the API process knows of the engine, over sockets or inline."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from tiercel.wire.messages import EngineReady, EngineStats, TokenDelta
from tiercel.wire.request import GenerationRequest


@dataclass(frozen=True)
class EngineHealth:
    """`healthy` is decided from heartbeats; `reason` says why not, for logs, never for clients."""

    healthy: bool
    reason: str = ""


class EngineClient(Protocol):
    """One engine. All methods are called from one event loop."""

    @property
    def ready(self) -> EngineReady:
        """The engine's final limits. Only valid after start."""
        ...

    @property
    def stats(self) -> EngineStats | None:
        """The scheduler's state as of the latest message."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """Deltas until one has a `finish_reason` or an `error`.

        Closing the iterator early (aclose, or cancelling the task that iterates) aborts the
        sequence: queued or running, its blocks are free after the current step. Never raises for
        what the engine does: a dead engine is a last delta with `error` set.
        """
        ...

    def health(self) -> EngineHealth:
        """Answers from memory; never asks the engine."""
        ...
