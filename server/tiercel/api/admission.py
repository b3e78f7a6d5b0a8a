"""How many requests may be in the server at once: a permit is held from validation to the end."""

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
    def permit(self) -> Iterator[None]:
        """One permit for as long as the block runs. Raises Overloaded when none is left."""
        if self._held >= self._limit:
            raise Overloaded
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
