"""Every metric family once: its exact name on the wire, its type, its help and its labels.

The values live in prometheus_client objects. Its registry is not used, because it renames counters
(`_total`) and adds `_created` series, which TGI's dashboards do not know.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric

Kind = Literal["counter", "gauge", "histogram", "summary"]
Made = TypeVar("Made", Counter, Gauge, Histogram)


class Collector(Protocol):
    """Whatever gives its present values."""

    def collect(self) -> Iterable[Metric]:
        """One Metric."""


@dataclass(frozen=True)
class Family:
    """One family. `bounds` are those of a histogram, without +Inf."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...]
    collector: Collector
    values: tuple[tuple[str, ...], ...] = ()  # combinations of labels that exist from the start


class Catalogue:
    """Makes families and remembers them in order."""

    def __init__(self) -> None:
        self.families: list[Family] = []

    def counter(
        self, name: str, text: str, *labels: str, values: Sequence[Sequence[str]] = ()
    ) -> Counter:
        """A number that grows. `values`: series that are there, at 0, before their first use."""
        return self._add(
            "counter", name, text, labels, Counter(name, text, labels, registry=None), values=values
        )

    def gauge(
        self, name: str, text: str, *labels: str, values: Sequence[Sequence[str]] = ()
    ) -> Gauge:
        """A number that goes up and down."""
        return self._add(
            "gauge", name, text, labels, Gauge(name, text, labels, registry=None), values=values
        )

    def computed(
        self, name: str, text: str, value: Callable[[], float], kind: Kind = "gauge"
    ) -> None:
        """A number that is asked for when somebody scrapes, in the thread that renders."""
        gauge = Gauge(name, text, registry=None)
        gauge.set_function(value)
        self._add(kind, name, text, (), gauge)

    def histogram(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        *labels: str,
        values: Sequence[Sequence[str]] = (),
    ) -> Histogram:
        """Observations by size."""
        made = Histogram(name, text, labels, buckets=bounds, registry=None)
        return self._add("histogram", name, text, labels, made, tuple(bounds), values)

    def summary(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        """A summary on the wire, with buckets beside it: see `exposition.py`."""
        made = Histogram(name, text, buckets=bounds, registry=None)
        return self._add("summary", name, text, (), made, tuple(bounds))

    def _add(
        self,
        kind: Kind,
        name: str,
        text: str,
        labels: tuple[str, ...],
        made: Made,
        bounds: tuple[float, ...] = (),
        values: Sequence[Sequence[str]] = (),
    ) -> Made:
        for each in values:
            made.labels(*each)
        known = tuple(tuple(each) for each in values)
        self.families.append(Family(name, kind, text, labels, bounds, made, known))
        return made
