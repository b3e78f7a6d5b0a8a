"""The catalogue as text: Prometheus' format 0.0.4, or OpenMetrics 1.0 with exemplars.

Names are written exactly as the catalogue has them. OpenMetrics wants `_total` on every counter, so
there TGI's counters, which have none, are of type `unknown`. What does not change of a line, its
name and labels, is put together once. A whole bound is `le="1"` for TGI's names in the text format,
as TGI's exporter writes it, and `le="1.0"` everywhere else, as OpenMetrics wants it.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import accumulate
from typing import Literal

from tiercel.telemetry.catalogue import Family
from tiercel.telemetry.instruments import Exemplar, Histogram, Instrument, Number

Format = Literal["text", "openmetrics"]
Labels = tuple[tuple[str, str], ...]

CONTENT_TYPES: Mapping[Format, str] = {
    "text": "text/plain; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
QUANTILES = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)  # TGI's, of its one summary


def wanted_format(accept: str) -> Format:
    """What an Accept header asks for. OpenMetrics unless plain text is preferred to it."""
    ranked: dict[str, float] = {}
    for part in accept.split(","):
        kind, *parameters = (piece.strip() for piece in part.lower().split(";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            ranked[kind] = max(float(quality), ranked.get(kind, 0.0))
        except ValueError:
            continue
    asked = ranked.get("application/openmetrics-text", 0.0)
    return "openmetrics" if asked > 0 and asked >= ranked.get("text/plain", 0.0) else "text"


class FamilyText:
    """Writes one family again and again."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._known: Mapping[tuple[str, ...], Instrument] = {}
        self._series: dict[Format, list[tuple[list[str], list[Instrument]]]] = {}
        self._heads: dict[Format, str] = {}
        # Histograms are most of the text, and most of them have not changed since the last scrape.
        self._kept: dict[tuple[str, Format], tuple[int, str]] = {}

    def name(self) -> str:
        """As it is exposed."""
        return self.family.name

    def labels(self, values: tuple[str, ...]) -> Labels:
        """Names and values of one series."""
        return tuple(zip(self.family.instrument.label_names, values, strict=True))

    def lines(self, kind: Format) -> Iterator[str]:
        """Everything there is to say now."""
        if self.family.instrument.children is not self._known:
            self._known = self.family.instrument.children
            self._series = {}
        if kind not in self._series:
            self._series[kind] = self._grouped(kind)
        yield self._heads.get(kind) or self._heads.setdefault(kind, self._head(kind))
        for prefixes, children in self._series[kind]:
            first = children[0]
            if isinstance(first, Histogram):
                yield self._histogram(first, prefixes, kind)
            elif len(children) == 1 and isinstance(first, Number):
                yield f"{prefixes[0]}{number(first.value)}\n"
            else:
                value = sum(child.value for child in children if isinstance(child, Number))
                yield f"{prefixes[0]}{number(value)}\n"

    def _histogram(self, values: Histogram, prefixes: list[str], kind: Format) -> str:
        # Read before the text is made: what comes meanwhile makes it outdated, not wrong for good.
        number, key = values.observations, (prefixes[0], kind)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == number:
            return kept[1]
        write = _summary if self.family.kind == "summary" else _histogram
        text = "".join(write(self.name(), values, prefixes, kind))
        self._kept[key] = (number, text)
        return text

    def _head(self, kind: Format) -> str:
        name, type_ = self.name(), str(self.family.kind)
        if kind == "openmetrics" and type_ == "counter":
            if name.endswith("_total"):
                name = name.removesuffix("_total")
            else:
                type_ = "unknown"
        return f"# HELP {name} {self.family.text}\n# TYPE {name} {type_}\n"

    def _grouped(self, kind: Format) -> list[tuple[list[str], list[Instrument]]]:
        """Series that have the same labels here are one, and their values are added."""
        groups: dict[Labels, list[Instrument]] = {}
        for values, child in self._known.items():
            groups.setdefault(self.labels(values), []).append(child)
        return [(self._prefixes(labels, kind), children) for labels, children in groups.items()]

    def _prefixes(self, labels: Labels, kind: Format) -> list[str]:
        name = self.name()
        if not isinstance(self.family.instrument, Histogram):
            return [f"{name}{braced(labels)} "]
        written = _rust if kind == "text" and name.startswith("tgi_") else repr
        bounds = [*map(written, self.family.bounds), "+Inf"]
        return [
            *(f"{name}_bucket{braced((*labels, ('le', bound)))} " for bound in bounds),
            f"{name}_count{braced(labels)} ",
            f"{name}_sum{braced(labels)} ",
        ]


def _histogram(_: str, values: Histogram, prefixes: list[str], kind: Format) -> Iterator[str]:
    counts = list(accumulate(values.counts))
    exemplars = values.exemplars if kind == "openmetrics" else {}
    lines = [f"{prefixes[index]}{count}\n" for index, count in enumerate(counts)]
    for index, found in list(exemplars.items()):
        lines[index] = f"{lines[index][:-1]}{_exemplar(found)}\n"
    yield "".join(lines)
    yield f"{prefixes[-2]}{counts[-1]}\n{prefixes[-1]}{number(values.sum)}\n"


def _summary(name: str, values: Histogram, prefixes: list[str], kind: Format) -> Iterator[str]:
    """Quantiles, count and sum; and beside them the buckets that TGI's dashboard asks for.

    A summary has none, so they are a family of their own. Observations are whole numbers and the
    bounds too: a quantile is the bound of the first bucket that reaches its rank.
    """
    counts = list(accumulate(values.counts))
    bounds = (*values.bounds, values.bounds[-1])
    for quantile in QUANTILES:
        rank = max(1.0, quantile * counts[-1])
        reached = (bound for bound, count in zip(bounds, counts, strict=True) if count >= rank)
        written = _rust(quantile) if kind == "text" else repr(quantile)
        yield f'{name}{{quantile="{written}"}} {number(next(reached, 0.0))}\n'
    yield f"{prefixes[-2]}{counts[-1]}\n{prefixes[-1]}{number(values.sum)}\n"
    type_ = "unknown" if kind == "openmetrics" else "untyped"
    yield f"# HELP {name}_bucket The same as a histogram\n# TYPE {name}_bucket {type_}\n"
    for index, count in enumerate(counts):
        yield f"{prefixes[index]}{count}\n"


def _exemplar(found: Exemplar) -> str:
    if not found.text:
        labels = braced(tuple(found.labels.items()))
        found.text = f" # {labels} {number(found.value)} {found.unix_s:.3f}"
    return found.text


def braced(labels: Labels) -> str:
    """Labels as they follow a name; nothing where there are none."""
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _rust(value: float) -> str:
    """As Rust displays a number: the same digits as ours, no exponent, whole ones without `.0`."""
    return f"{Decimal(repr(value)).normalize():f}"


def number(value: float) -> str:
    """Whole numbers without a fraction; there is no infinity among our values."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
