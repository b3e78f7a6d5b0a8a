"""Several generations side by side: for best_of, n and lists of prompts."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypeVar

Step = TypeVar("Step")
Step_co = TypeVar("Step_co", covariant=True)
# Then a generation waits for whoever reads, and the engine's own limit for slow readers holds.
_QUEUED_PIECES = 64


class Deltas(Protocol[Step_co]):
    """A Generation, or what reads like one."""

    def deltas(self) -> AsyncGenerator[Step_co, None]:
        """What each step added. Iterated once; closing it early aborts."""
        ...


@dataclass(frozen=True)
class _End:
    """One generation is over, with what it raised."""

    error: Exception | None


async def several(generations: Sequence[Deltas[Step]]) -> AsyncGenerator[tuple[int, Step], None]:
    """(index of the generation, its next tokens) as they come, until all have ended.

    Raises the RequestError of the first one that fails. However it ends, all the others are
    aborted.
    """
    if len(generations) == 1:  # no tasks for the most frequent case
        async with aclosing(generations[0].deltas()) as deltas:
            async for tokens in deltas:
                yield 0, tokens
        return
    queue: asyncio.Queue[tuple[int, Step] | _End] = asyncio.Queue(_QUEUED_PIECES)
    tasks = [
        asyncio.ensure_future(_forward(index, generation, queue))
        for index, generation in enumerate(generations)
    ]
    try:
        running = len(tasks)
        while running:
            piece = await queue.get()
            if not isinstance(piece, _End):
                yield piece
                continue
            running -= 1
            if piece.error is not None:
                raise piece.error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(
    index: int, generation: Deltas[Step], queue: asyncio.Queue[tuple[int, Step] | _End]
) -> None:
    end = _End(None)
    try:
        async with aclosing(generation.deltas()) as deltas:
            async for tokens in deltas:
                await queue.put((index, tokens))
    except Exception as error:  # noqa: BLE001 - raised again where the pieces are read
        end = _End(error)
    await queue.put(end)
