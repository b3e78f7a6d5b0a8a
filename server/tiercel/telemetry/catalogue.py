"""Every metric family once: its exact name on the wire, its type, its help and its labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from tiercel.telemetry.instruments import Histogram, Instrument, Number

Kind = Literal["counter", "gauge", "histogram", "summary"]
Made = TypeVar("Made", bound=Instrument)


@dataclass(frozen=True)
class Family:
    """One family. `values` are the combinations of labels that exist from the start."""

    name: str
    kind: Kind
    text: str
    instrument: Instrument
    values: tuple[tuple[str, ...], ...] = ()

    @property
    def bounds(self) -> tuple[float, ...]:
        """Those of a histogram, without +Inf."""
        return self.instrument.bounds if isinstance(self.instrument, Histogram) else ()


class Catalogue:
    """Makes families and remembers them in order."""

    def __init__(self) -> None:
        self.families: list[Family] = []

    def counter(
        self, name: str, text: str, *labels: str, values: Sequence[Sequence[str]] = ()
    ) -> Number:
        """A number that grows. `values`: series that are there, at 0, before their first use."""
        return self._add("counter", name, text, Number(labels), values)

    def gauge(
        self, name: str, text: str, *labels: str, values: Sequence[Sequence[str]] = ()
    ) -> Number:
        """A number that goes up and down."""
        return self._add("gauge", name, text, Number(labels), values)

    def computed(
        self, name: str, text: str, value: Callable[[], float], kind: Kind = "gauge"
    ) -> None:
        """A number that is asked for when somebody scrapes."""
        self._add(kind, name, text, Number()).set_function(value)

    def histogram(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        *labels: str,
        values: Sequence[Sequence[str]] = (),
    ) -> Histogram:
        """Observations by size."""
        return self._add("histogram", name, text, Histogram(bounds, labels), values)

    def summary(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        """A summary on the wire, with buckets beside it: see `exposition.py`."""
        return self._add("summary", name, text, Histogram(bounds))

    def _add(
        self,
        kind: Kind,
        name: str,
        text: str,
        made: Made,
        values: Sequence[Sequence[str]] = (),
    ) -> Made:
        for each in values:
            made.labels(*each)
        self.families.append(Family(name, kind, text, made, tuple(tuple(each) for each in values)))
        return made
