"""Bytes and time left of work that somebody waits for: a bar on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int], None]  # called with the bytes done since the last call

EVERY_S = 5.0


class ByteLines:
    """A line every few seconds, and one at the end, where no bar can be."""

    def __init__(self, title: str, tell: Callable[[str], None]) -> None:
        self._title = title
        self._tell = tell
        self._began_s = self._told_s = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """So much of all is done."""
        now = time.monotonic()
        if done_bytes < total_bytes and now - self._told_s < EVERY_S:
            return
        self._told_s = now
        seconds = now - self._began_s
        left_s = seconds * (total_bytes - done_bytes) / max(1, done_bytes)
        self._tell(
            f"{self._title}: {done_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB "
            f"after {seconds:.1f} s, about {left_s:.0f} s left"
        )


@contextmanager
def byte_bar(title: str, total_bytes: int) -> Iterator[Advance]:
    """Show bytes done, speed and time left until the block ends; yields what to call."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:  # there rich shows a bar once, at its end
        yield _lines(title, total_bytes, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total_bytes)
        yield lambda count: progress.advance(task, count)


def _lines(title: str, total_bytes: int, console: "Console") -> Advance:
    lines = ByteLines(title, lambda line: console.print(line, highlight=False, soft_wrap=True))
    done_bytes = 0

    def advance(count: int) -> None:
        nonlocal done_bytes
        done_bytes += count
        lines(done_bytes, total_bytes)

    return advance
