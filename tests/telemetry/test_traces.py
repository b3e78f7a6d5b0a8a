"""Spans through the real edge and exporter to a real collector, or to one that is no good."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.conformance_collector import Collector
from support.edge_server import STORY, EdgeServer, say
from tiercel.telemetry.traces import SHUTDOWN_S, OtlpTraces

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
FOUR = {"max_new_tokens": 4}
BODY = {"inputs": "Hi", "parameters": {**FOUR, "do_sample": True, "seed": 3}}
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


def traced(collector: Collector, *requests: tuple[str, object, dict[str, str]]) -> list[Any]:
    """The spans of these requests, in their order."""
    collector.spans.clear()
    traces = OtlpTraces(collector.endpoint, "grpc", "falcon")
    with EdgeServer(say(STORY), traces=traces) as server:
        for path, body, headers in requests:
            everything = {"content-type": "application/json", **headers}
            server.http.post(path, json=body, headers=everything)
    traces.close()
    return sorted(collector.spans, key=lambda span: span.start_time_unix_nano)


def attributes(span: Any) -> dict[str, str]:
    return {
        each.key: each.value.string_value or str(each.value.int_value) for each in span.attributes
    }


def test_a_span_is_a_child_of_the_callers(collector: Collector) -> None:
    caller = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"}
    (span,) = traced(collector, ("/generate", BODY, caller))
    assert (span.name, span.trace_id.hex()) == ("generate", TRACE)
    assert (span.parent_span_id.hex(), span.trace_state) == (PARENT, "a=b")
    found = attributes(span)
    assert found["seed"] == "3"
    assert '"max_new_tokens":4' in found["parameters"]
    times = ("total_time", "validation_time", "queue_time", "inference_time", "time_per_token")
    assert all(found[name].endswith("ms") for name in times)
    assert found["http.response.status_code"] == "200"
    assert "Hi" not in str(span)


@pytest.mark.parametrize(
    "header",
    ["", "x", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}", "é"],
)
def test_a_malformed_context_is_no_context(collector: Collector, header: str) -> None:
    (span,) = traced(collector, ("/generate", BODY, {"traceparent": header.encode()}))  # type: ignore[dict-item]
    assert span.parent_span_id == b"" and span.trace_id.hex() != TRACE


def test_names_are_tgis(collector: Collector) -> None:
    spans = traced(
        collector,
        ("/", BODY, {}),
        ("/generate_stream", BODY, {}),
        ("/tokenize", BODY, {}),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 4}, {}),
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 4}, {}),
        ("/invocations", BODY, {}),
        ("/vertex", {"instances": [BODY]}, {}),
        ("/v2/models/a/b/generate", {"text_input": "Hi", "parameters": FOUR}, {}),
        ("/v2/models/a/b/unknown", {}, {}),
    )
    assert [span.name for span in spans] == [
        "compat_generate", "generate_stream", "tokenize", "chat_completions", "completions",
        "sagemaker_compatibility", "vertex_compatibility", "kserve_generate",
    ]  # fmt: skip
    assert all("total_time" in attributes(span) for span in spans if span.name != "tokenize")


def test_a_refusal_is_an_error_without_the_users_words(collector: Collector) -> None:
    body = {"inputs": "secret", "parameters": {"temperature": 0.0}}
    (span,) = traced(collector, ("/generate", body, {}))
    assert (span.status.code, span.status.message) == (2, "validation")
    assert attributes(span)["http.response.status_code"] == "422"
    assert "secret" not in str(span)


def test_over_http(collector: Collector) -> None:
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    traces = OtlpTraces(f"http://127.0.0.1:{server.server_port}", "http/protobuf", "falcon")
    traces.start("generate", {}).end()
    traces.close()
    server.shutdown()
    thread.join()
    server.server_close()
    ((path, content),) = received
    assert path == "/v1/traces"
    request = ExportTraceServiceRequest.FromString(content)
    (resource,) = request.resource_spans
    assert attributes(resource.resource)["service.name"] == "falcon"
    assert resource.scope_spans[0].spans[0].name == "generate"


@pytest.fixture
def silent() -> Iterator[str]:
    """A collector that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("kind", ["silent", "refusing"])
def test_a_dead_collector_costs_nothing(silent: str, kind: str, protocol: str) -> None:
    endpoint = silent if kind == "silent" else "http://127.0.0.1:9"
    before = set(threading.enumerate())
    traces = OtlpTraces(endpoint, protocol, "falcon")
    started_s = time.monotonic()
    for _ in range(5_000):  # more than the queue holds
        traces.start("generate", {}).end()
    assert time.monotonic() - started_s < 5.0
    started_s = time.monotonic()
    traces.close()
    assert time.monotonic() - started_s < SHUTDOWN_S + 0.5
    left = set(threading.enumerate()) - before
    for thread in left:  # they have been told to end: a moment, not the exporter's ten seconds
        thread.join(2.0)
    assert not [thread for thread in left if thread.is_alive()]


def test_nothing_is_imported_while_it_is_off() -> None:
    script = (
        "import sys, tiercel.server, tiercel.telemetry.traces\n"
        "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter', 'grpc')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "[]", run.stderr
