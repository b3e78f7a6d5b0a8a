"""The order in which sequences that do not run get their turn."""

from collections import OrderedDict
from typing import Protocol

from tiercel.scheduler.sequence import Sequence


class WaitingQueue(Protocol):
    """Sequences without a row. `peek` names the only one that may be admitted next."""

    def __len__(self) -> int: ...

    @property
    def tokens(self) -> int:
        """Known tokens of all of them."""
        ...

    def append(self, sequence: Sequence) -> None:
        """A new request."""
        ...

    def put_back(self, sequence: Sequence) -> None:
        """A preempted sequence: ahead of everything that has not run yet."""
        ...

    def peek(self) -> Sequence | None:
        """The next one in turn; None when empty. Stays in line."""
        ...

    def remove(self, sequence: Sequence) -> None:
        """Admitted or aborted. Raises KeyError if it is not in line."""
        ...


class FirstComeFirstServed:
    """Strict order of arrival; a preempted sequence goes to the front."""

    def __init__(self) -> None:
        self._line: OrderedDict[int, Sequence] = OrderedDict()
        self._tokens = 0  # who waits learns no token, so what came in goes out

    def __len__(self) -> int:
        return len(self._line)

    @property
    def tokens(self) -> int:
        return self._tokens

    def append(self, sequence: Sequence) -> None:
        self._line[sequence.id] = sequence
        self._tokens += len(sequence.tokens)

    def put_back(self, sequence: Sequence) -> None:
        self.append(sequence)
        self._line.move_to_end(sequence.id, last=False)

    def peek(self) -> Sequence | None:
        return next(iter(self._line.values()), None)

    def remove(self, sequence: Sequence) -> None:
        del self._line[sequence.id]
        self._tokens -= len(sequence.tokens)
