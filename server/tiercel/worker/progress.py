"""How far a rank is with its weights, in its log: it has no terminal of its own."""

import logging
import time

logger = logging.getLogger(__name__)

EVERY_S = 5.0


class LoadLog:
    """A line every few seconds while a model loads, and one at its end."""

    def __init__(self) -> None:
        self._began_s = self._told_s = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if done_bytes < total_bytes and now - self._told_s < EVERY_S:
            return
        self._told_s = now
        seconds = now - self._began_s
        logger.info(
            "loading: its part of %.1f of %.1f MB after %.1f s, about %.0f s left",
            done_bytes / 1e6,
            total_bytes / 1e6,
            seconds,
            seconds * (total_bytes - done_bytes) / max(1, done_bytes),
        )
