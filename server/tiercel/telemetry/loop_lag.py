"""Asks an event loop again and again to come back at a set time, and notes how late it was."""

import asyncio
from collections.abc import Callable

EVERY_S = 0.5


async def watch_loop(observe: Callable[[float], None], every_s: float = EVERY_S) -> None:
    """Runs until it is cancelled; `observe` takes seconds."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + every_s
        await asyncio.sleep(every_s)
        observe(max(0.0, loop.time() - due_s))
