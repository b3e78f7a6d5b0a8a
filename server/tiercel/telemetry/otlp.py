"""Exporters of spans over OTLP that can be given up: none outlives its end by more than a moment.

Owns what leaves the process, nothing of what a span says. Imports the SDK late: off is free.
"""

import logging
import socket
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from requests import Session
    from urllib3.connection import HTTPConnection

logger = logging.getLogger(__name__)

# A dead collector is reported so often, not with every batch.
REPORT_EVERY_S = 60.0


class Exporter(Protocol):
    """A `SpanExporter` that may be told from another thread to stop waiting."""

    exported: int  # spans that the collector has taken

    def abandon(self) -> None:
        """End what is under way: a call, a pause before another try. Safe to repeat."""


class _Connections:
    """The HTTP connections of one session. `requests` closes idle ones only, not one in a read."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self.abandoned = False

    def add(self, connection: "HTTPConnection") -> None:
        self._open.add(connection)

    def abandon(self) -> None:
        """A read or write under way fails at once, and nothing connects any more.

        What cannot be ended is a lookup of the collector's name or a connect under way: those
        are one call into the C library. They last as long as the exporter's timeout at most.
        """
        self.abandoned = True
        for connection in list(self._open):
            sock = connection.sock
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # its peer or its owner was faster


def _session(connections: _Connections) -> "Session":
    """A session whose connections are known to `connections`."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.exceptions import NewConnectionError

    def join(connection: HTTPConnection) -> None:
        if connections.abandoned:
            raise NewConnectionError(connection, "the exporter has ended")
        connections.add(connection)

    class Plain(HTTPConnection):
        def connect(self) -> None:
            join(self)
            super().connect()

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            join(self)
            super().connect()

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

    session = requests.Session()
    session.mount("http://", Adapter())
    session.mount("https://", Adapter())
    return session


def _inner(endpoint: str, protocol: str, connections: _Connections) -> "SpanExporter":
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
        OTLPSpanExporter as HttpSpanExporter,
    )

    return HttpSpanExporter(endpoint=endpoint, session=_session(connections))


def place(endpoint: str) -> str:
    """Scheme, host and port. Users and passwords, paths and queries may be secret: keys, tokens."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def make_exporter(endpoint: str, protocol: str) -> "tuple[SpanExporter, Exporter]":
    """The exporter for grpc or http/protobuf, twice: as the SDK sees it and as its owner does.

    Over HTTP `endpoint` is the whole address, path included.
    """
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    connections = _Connections()
    inner = _inner(endpoint, protocol, connections)

    class Reporting(SpanExporter):
        """Says now and then that spans get lost."""

        def __init__(self) -> None:
            self.exported = 0
            self._lost = 0
            self._reported_s = -REPORT_EVERY_S
            self._ended = False

        def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
            if self._ended:
                return SpanExportResult.FAILURE
            result = inner.export(spans)
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
            else:
                self._lost += len(spans)
                now = time.monotonic()
                if now - self._reported_s >= REPORT_EVERY_S:
                    self._reported_s = now
                    logger.warning(
                        "%s does not take traces; %d lost so far", place(endpoint), self._lost
                    )
            return result

        def shutdown(self) -> None:
            if not self._ended:
                self._ended = True
                inner.shutdown()

        def abandon(self) -> None:
            # The SDK's own event ends its pause before another try; its gRPC channel, closed,
            # cancels the call under way. Only HTTP needs a hand.
            self.shutdown()
            connections.abandon()

    exporter = Reporting()
    return exporter, exporter
