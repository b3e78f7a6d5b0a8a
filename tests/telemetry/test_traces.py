"""Spans through the real edge and exporter to a real collector, or to one that is no good."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from support.conformance_collector import Collector
from support.edge_server import STORY, EdgeServer, say, until
from support.otlp_receivers import HttpReceiver
from support.scripted_engine import Play
from tiercel.telemetry.traces import OtlpTraces
from tiercel.wire.messages import Token, TokenDelta
from tiercel.wire.request import GenerationRequest

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SERVER = 2  # the kind of a span that stands for an incoming request
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
    spans = [span for span in collector.spans if span.kind == SERVER]
    return sorted(spans, key=lambda span: span.start_time_unix_nano)


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


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_one_trace_from_the_client_to_the_phases(collector: Collector, protocol: str) -> None:
    """traceparent, request, and below it queue, prefill, decode and detokenize, in time."""
    http = HttpReceiver()
    endpoint = collector.endpoint if protocol == "grpc" else http.endpoint
    collector.spans.clear()
    traces = OtlpTraces(endpoint, protocol, "falcon")
    with EdgeServer(say(STORY, first_s=0.02, gap_s=0.01), traces=traces) as server:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        started_ns = time.time_ns()
        server.http.post("/generate_stream", json=BODY, headers=headers)
    traces.close()
    ended_ns = time.time_ns()  # a client may have the last byte before the server's span ends
    http.stop()
    spans = collector.spans
    if protocol != "grpc":
        (resource,) = http.resources
        assert attributes(resource.resource)["service.name"] == "falcon"
        (scope,) = resource.scope_spans
        assert (scope.scope.name, "opentelemetry.io/schemas" in scope.schema_url) == (
            "tiercel",
            True,
        )
        spans = http.spans
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    named = {span.name: span for span in spans}
    assert set(named) == {"generate_stream", "queue", "prefill", "decode", "detokenize"}
    request = named.pop("generate_stream")
    assert request.parent_span_id.hex() == PARENT
    assert {span.parent_span_id for span in named.values()} == {request.span_id}
    queue, prefill, decode = (named[name] for name in ("queue", "prefill", "decode"))
    times = [
        started_ns, request.start_time_unix_nano, queue.start_time_unix_nano,
        queue.end_time_unix_nano, prefill.end_time_unix_nano, decode.end_time_unix_nano,
        request.end_time_unix_nano, ended_ns,
    ]  # fmt: skip
    slack_ns = 2_000_000  # two clocks are read one after the other
    early = [earlier - later for earlier, later in pairwise(times) if later <= earlier - slack_ns]
    assert not early, times
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert decode.end_time_unix_nano - decode.start_time_unix_nano > 3 * 10_000_000 - slack_ns
    assert traces.spans_ended == traces.spans_exported == 5
    _check_conventions(request)


def _check_conventions(request: Any) -> None:
    found = {each.key: each.value for each in request.attributes}
    assert found["gen_ai.operation.name"].string_value == "text_completion"
    assert found["gen_ai.provider.name"].string_value == "tiercel"
    assert found["gen_ai.request.model"].string_value == "test/model"
    assert found["gen_ai.request.max_tokens"].int_value == 4
    assert found["gen_ai.request.temperature"].double_value == 1.0
    assert found["gen_ai.request.seed"].int_value == 3
    assert found["gen_ai.usage.input_tokens"].int_value > 0
    assert found["gen_ai.usage.output_tokens"].int_value == 4
    reasons = found["gen_ai.response.finish_reasons"].array_value.values
    assert [each.string_value for each in reasons] == ["length"]


def milliseconds(span: Any) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6  # type: ignore[no-any-return]


def interrupted(collector: Collector, play: Play, leave: Callable[[EdgeServer], None]) -> list[Any]:
    """The spans of one request that ends as `leave` ends it."""
    collector.spans.clear()
    traces = OtlpTraces(collector.endpoint, "grpc", "falcon")
    with EdgeServer(play, traces=traces) as server:
        leave(server)
        until(lambda: server.state.in_flight == 0)
    traces.close()
    assert {span.parent_span_id for span in collector.spans if span.kind != SERVER} == {
        next(span.span_id for span in collector.spans if span.kind == SERVER)
    }
    return sorted(collector.spans, key=lambda span: span.start_time_unix_nano)


def test_a_client_that_leaves_while_decoding(collector: Collector) -> None:
    """The decoding until then is in the trace, and that it was cut short."""

    def leave(server: EdgeServer) -> None:
        with server.stream(max_new_tokens=100) as response:
            chunks = response.iter_raw()
            for _ in range(5):
                next(chunks)
            time.sleep(0.3)

    spans = interrupted(collector, say(STORY, first_s=0.05, gap_s=0.02), leave)
    named = {span.name: span for span in spans}
    assert set(named) == {"generate_stream", "queue", "prefill", "decode", "detokenize"}
    request, decode = named["generate_stream"], named["decode"]
    assert (request.status.code, request.status.message) == (2, "dropped")
    assert attributes(request)["stage"] == "decode"
    assert 300 <= milliseconds(decode) <= milliseconds(request)
    assert abs(decode.end_time_unix_nano - request.end_time_unix_nano) < 1e9
    assert (decode.status.code, decode.status.message) == (2, "dropped")
    assert int(attributes(decode)["gen_ai.usage.output_tokens"]) >= 10
    assert [named[name].status.code for name in ("queue", "prefill")] == [0, 0]


def test_a_client_that_leaves_the_queue(collector: Collector) -> None:
    def leave(server: EdgeServer) -> None:
        with pytest.raises(httpx.ReadTimeout):
            server.post("/generate", BODY, timeout=0.4)

    request, queue = interrupted(collector, say(STORY, first_s=60.0), leave)
    assert (request.name, queue.name) == ("generate", "queue")
    assert 300 <= milliseconds(queue) <= milliseconds(request)
    for span in (request, queue):
        assert (span.status.code, span.status.message) == (2, "dropped")


@pytest.mark.parametrize("tokens", [0, 3])
def test_an_engine_that_fails(collector: Collector, tokens: int) -> None:
    """In the prefill, of which it says when it began, or in the middle of an answer."""

    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        await asyncio.sleep(0.2)
        for index in range(tokens):
            yield TokenDelta(request.id, [Token(5, -0.5)], queue_s=None if index else 0.05)
            await asyncio.sleep(0.05)
        queue_s = None if tokens else 0.05
        yield TokenDelta(request.id, [], error="broken", error_type="generation", queue_s=queue_s)

    def leave(server: EdgeServer) -> None:
        assert server.post("/generate", BODY).status_code == 424

    spans = interrupted(collector, play, leave)
    named = {span.name: span for span in spans}
    wanted = {"queue", "prefill", *(("decode", "detokenize") if tokens else ())}
    assert set(named) == {"generate", *wanted}
    assert 40 <= milliseconds(named["queue"]) < 150
    assert milliseconds(named["prefill"]) >= 120
    failed = {span.name for span in spans if (span.status.code, span.status.message) ==
              (2, "generation")}  # fmt: skip
    assert failed == {"generate", "decode" if tokens else "prefill"}
    if tokens:
        assert milliseconds(named["decode"]) >= 120


def test_each_sequence_has_its_phases(collector: Collector) -> None:
    body = {"inputs": "Hi", "parameters": {**FOUR, "do_sample": True, "best_of": 2}}
    (request,) = traced(collector, ("/generate", body, {}))
    below = [span.name for span in collector.spans if span.parent_span_id == request.span_id]
    assert sorted(below) == sorted(["queue", "prefill", "decode", "detokenize"] * 2)
    assert attributes(request)["gen_ai.request.choice.count"] == "2"


def test_a_caller_that_does_not_sample_gets_no_spans(collector: Collector) -> None:
    assert traced(collector, ("/generate", BODY, {"traceparent": f"00-{TRACE}-{PARENT}-00"})) == []
    assert collector.spans == []


def test_nothing_is_imported_while_it_is_off() -> None:
    script = (
        "import sys, tiercel.server, tiercel.telemetry.traces\n"
        "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter', 'grpc')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "[]", run.stderr
