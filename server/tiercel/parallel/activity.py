"""What a rank's main thread does, for the watch beside it: a process may beat and yet hang."""


class Activity:
    """Counts of one rank. Written by its main thread, read by its watch."""

    __slots__ = ("entered", "other")

    def __init__(self) -> None:
        self.entered = 0  # collectives, finished or not: the ranks enter the same ones in turn
        self.other = 0  # signs of work in between, as when a tensor has been read

    def __str__(self) -> str:
        return f"{self.entered} {self.other}"
