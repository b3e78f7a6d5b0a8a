"""How many requests may be in the server at once: a permit per sequence until it ends."""

from collections.abc import Iterator
from contextlib import contextmanager

from tiercel.errors import Overloaded


class Admission:
    """`limit` permits. Used on one event loop, so a plain count is enough."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @property
    def held(self) -> int:
        """Permits that are out now."""
        return self._held

    @contextmanager
    def permits(self, count: int) -> Iterator[None]:
        """`count` permits for as long as the block runs. Raises Overloaded, and then holds none."""
        if self._held + count > self._limit:
            raise Overloaded
        self._held += count
        try:
            yield
        finally:
            self._held -= count
