"""What prometheus_client knows of every Python process: memory, CPU time, descriptors, collections.

Our own families are not in its registry: see `instruments.py`. Written here, too, because its own
writer takes longer for these twenty lines than ours for two thousand.
"""

import time
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)

from tiercel.telemetry.exposition import Format, braced, number

FRESH_S = 0.25  # /proc is read no more often


class ProcessText:
    """`process_*` and `python_*` of the API process, under their usual names."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._made: dict[Format, tuple[float, str]] = {}

    def text(self, kind: Format) -> str:
        """All of them, a moment old at most, without OpenMetrics' end of the page."""
        now = time.monotonic()
        made_s, text = self._made.get(kind, (-FRESH_S, ""))
        if now - made_s >= FRESH_S:
            text = "".join(self._lines(kind))
            self._made[kind] = (now, text)
        return text

    def _lines(self, kind: Format) -> Iterator[str]:
        for family in self._registry.collect():
            name = family.name
            if kind == "text" and family.type == "counter":
                name += "_total"
            yield f"# HELP {name} {family.documentation}\n# TYPE {name} {family.type}\n"
            for sample in family.samples:
                labels = braced(tuple(sorted(sample.labels.items())))
                yield f"{sample.name}{labels} {number(sample.value)}\n"
