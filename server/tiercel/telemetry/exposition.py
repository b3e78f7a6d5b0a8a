"""The catalogue as text: Prometheus' format 0.0.4, or OpenMetrics 1.0 with exemplars.

Names are written exactly as the catalogue has them. OpenMetrics wants `_total` on every counter, so
there TGI's counters, which have none, are of type `unknown`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from tiercel.telemetry.catalogue import Family

Format = Literal["text", "openmetrics"]

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


def expose(families: Iterable[Family], kind: Format) -> str:
    """Everything there is to say now."""
    lines: list[str] = []
    for family in families:
        for metric in family.collector.collect():
            lines.extend(_family(family, metric, kind))
    if kind == "openmetrics":
        lines.append("# EOF\n")
    return "".join(lines)


def _family(family: Family, metric: Metric, kind: Format) -> Iterator[str]:
    samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
    if family.kind == "summary":
        yield from _summary(family, samples, kind)
        return
    name, type_ = family.name, str(family.kind)
    if kind == "openmetrics" and type_ == "counter":
        if name.endswith("_total"):
            name = name.removesuffix("_total")
        else:
            type_ = "unknown"
    yield _head(name, type_, family.text)
    for sample in samples:
        written = family.name if family.kind == "counter" else sample.name
        yield _line(written, sample, kind)


def _summary(family: Family, samples: list[Sample], kind: Format) -> Iterator[str]:
    """Quantiles, count and sum; and beside them the buckets that TGI's dashboard asks for.

    A summary has none, so they are a family of their own. Observations are whole numbers and the
    bounds too: a quantile is the bound of the first bucket that reaches its rank.
    """
    buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
    yield _head(family.name, "summary", family.text)
    total = buckets[-1].value
    for quantile in QUANTILES:
        rank = max(1.0, quantile * total)
        bound = next((each.labels["le"] for each in buckets if each.value >= rank), "0.0")
        labels = {"quantile": f"{quantile:g}"}
        value = float(bound) if bound != "+Inf" else family.bounds[-1]
        yield _line(family.name, Sample(family.name, labels, value), kind)
    for sample in samples:
        if not sample.name.endswith("_bucket"):
            yield _line(sample.name, sample, kind)
    name = f"{family.name}_bucket"
    yield _head(name, "unknown" if kind == "openmetrics" else "untyped", family.text)
    for sample in buckets:
        yield _line(name, sample._replace(exemplar=None), kind)


def _head(name: str, type_: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {type_}\n"


def _line(name: str, sample: Sample, kind: Format) -> str:
    line = f"{name}{_braced(sample.labels)} {_number(sample.value)}"
    exemplar = sample.exemplar
    if exemplar is not None and kind == "openmetrics":
        line += f" # {_braced(exemplar.labels)} {_number(exemplar.value)}"
        if exemplar.timestamp is not None:
            line += f" {float(exemplar.timestamp):.3f}"
    return line + "\n"


def _braced(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    """Whole numbers without a fraction; there is no infinity among our values."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
