"""Collectors of traces over HTTP, and some that are no good."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.conformance_collector import Collector


class HttpReceiver:
    """OTLP over HTTP: keeps what it is sent, and answers with `status`."""

    def __init__(self, status: int = 200) -> None:
        self.received: list[tuple[str, bytes]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()
        self.root = f"http://127.0.0.1:{self._server.server_port}"
        self.endpoint = f"{self.root}/v1/traces"

    @property
    def resources(self) -> list[Any]:
        """What has arrived, at the one path that is right."""
        found: list[Any] = []
        for path, content in self.received:
            assert path == "/v1/traces"
            found += ExportTraceServiceRequest.FromString(content).resource_spans
        return found

    @property
    def spans(self) -> list[Any]:
        """All of them."""
        return [
            span
            for resource in self.resources
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class FailingCollector(Collector):
    """Answers every export with a status of gRPC; UNAVAILABLE is one that is tried again."""

    refused = 0

    def Export(self, request: Any, context: Any) -> Any:
        """See OTLP's TraceService."""
        self.refused += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "not today")


@contextmanager
def no_good(kind: str, protocol: str) -> Iterator[str]:
    """The root of a collector that is `silent`, `refusing` or `failing`, in its protocol's way."""
    if kind == "refusing":
        yield "http://127.0.0.1:9"
    elif kind == "silent":  # takes connections and never says anything
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    elif protocol == "grpc":
        collector = FailingCollector()
        yield collector.endpoint
        collector.stop()
        assert collector.refused
    else:
        http = HttpReceiver(500)
        yield http.root
        http.stop()
        assert http.received
