"""Counters, gauges and histograms, as plain numbers.

prometheus_client's would do, but for two things: they rename what they expose, and to expose 2,200
series took them 28 ms (1 ms here), which two scrapers at 20 Hz turn into a whole core. What it
knows of the process is still its own: see `process.py`. Fed from one thread, the event loop's; read
from any.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Self, cast


class Exemplar:
    """An observation that stands for its bucket: labels, value and Unix time."""

    __slots__ = ("labels", "text", "unix_s", "value")

    def __init__(self, labels: Mapping[str, str], value: float) -> None:
        self.labels = labels
        self.value = value
        self.unix_s = time.time()
        self.text = ""  # as it is written, once it has been: most stay for many scrapes


class Instrument:
    """One series, or with label names the parent of one series per combination of values."""

    def __init__(self, label_names: Sequence[str] = ()) -> None:
        self.label_names = tuple(label_names)
        self.children: dict[tuple[str, ...], Self] = {}
        if not label_names:
            self.children[()] = cast("Self", self)

    def labels(self, *values: str) -> Self:
        """The series with these label values, in the order of the names; made on first use."""
        child = self.children.get(values)
        if child is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self.label_names} take as many values, not {values}")
            child = self._child()
            # A new dict, so that whoever goes through the old one is not disturbed.
            self.children = {**self.children, values: child}
        return child

    def _child(self) -> Self:
        return type(self)()


class Number(Instrument):
    """A counter or a gauge."""

    def __init__(self, label_names: Sequence[str] = ()) -> None:
        super().__init__(label_names)
        self._value = 0.0
        self._function: Callable[[], float] | None = None

    @property
    def value(self) -> float:
        """The value now; that of the function, if there is one."""
        return self._value if self._function is None else float(self._function())

    def inc(self, amount: float = 1.0) -> None:
        self._value += amount

    def dec(self, amount: float = 1.0) -> None:
        self._value -= amount

    def set(self, value: float) -> None:
        self._value = value

    def set_function(self, function: Callable[[], float]) -> None:
        """Ask it instead, in the thread of whoever reads."""
        self._function = function


class Histogram(Instrument):
    """Observations by size: `counts[i]` are those up to `bounds[i]`, the last ones beyond all."""

    def __init__(self, bounds: Sequence[float], label_names: Sequence[str] = ()) -> None:
        super().__init__(label_names)
        self.bounds = tuple(float(bound) for bound in bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}
        self.observations = 0  # the same number, the same text

    def observe(self, value: float, exemplar: Mapping[str, str] | None = None) -> None:
        """One observation. The `exemplar` names it to whoever wonders about its bucket."""
        index = bisect_left(self.bounds, value)
        self.counts[index] += 1
        self.sum += value
        self.observations += 1
        if exemplar is not None:
            self.exemplars[index] = Exemplar(exemplar, value)

    def _child(self) -> Self:
        return type(self)(self.bounds)
