"""What prometheus_client knows of every Python process: memory, CPU time, descriptors, collections.

Our own families are not in its registry: see `instruments.py`.
"""

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from tiercel.telemetry.exposition import Format

_END = "# EOF\n"


class ProcessText:
    """`process_*` and `python_*` of the API process, under their usual names."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self, kind: Format) -> str:
        """All of them now, without OpenMetrics' end of the page."""
        if kind == "text":
            return generate_latest(self._registry).decode()
        page: bytes = generate_openmetrics(self._registry)  # type: ignore[no-untyped-call]
        return page.decode().removesuffix(_END)
