"""What a collector is told about the service, and collectors that are no good: R-30."""

import threading
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest

from support.conformance_collector import Collector
from support.edge_server import STORY, EdgeServer, say, until
from support.otlp_receivers import HttpReceiver, no_good
from tiercel.telemetry.traces import SHUTDOWN_S, OtlpTraces

BODY = {"inputs": "Hi", "parameters": {"max_new_tokens": 4, "do_sample": True, "seed": 3}}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


def attributes(resource: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in resource.attributes}


@pytest.mark.parametrize(
    ("variables", "given", "name"),
    [
        ({}, None, "text-generation-inference.router"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,team=a"}, None, "ours"),
        ({"OTEL_SERVICE_NAME": "named", "OTEL_RESOURCE_ATTRIBUTES": "service.name=ours"}, None,
         "named"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours"}, "flag", "flag"),
    ],
)  # fmt: skip
def test_the_services_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], given: str | None, name: str
) -> None:
    """The flag, then the SDK's variables, then TGI's default."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    http = HttpReceiver()
    traces = OtlpTraces(http.endpoint, "http/protobuf", given)
    traces.start("generate", {}).end()
    traces.close()
    http.stop()
    (resource,) = http.resources
    assert attributes(resource.resource)["service.name"] == name


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_dead_collectors_secrets_are_not_logged(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = "http://someone:plantedWord1@127.0.0.1:9/plantedPath2?api-key=plantedWord3"
    traces = OtlpTraces(endpoint, protocol, "falcon")
    traces.start("generate", {}).end()
    traces.close()
    until(lambda: "does not take traces; 1 lost" in caplog.text)
    assert "http://127.0.0.1:9 does not take traces" in caplog.text
    assert "planted" not in caplog.text and "someone" not in caplog.text


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("kind", ["silent", "refusing", "failing"])
def test_a_dead_collector_costs_nothing(kind: str, protocol: str) -> None:
    with no_good(kind, protocol) as root:
        check_that_it_costs_nothing(endpoint_of(root, protocol), protocol)


def endpoint_of(root: str, protocol: str) -> str:
    return root if protocol == "grpc" else f"{root}/v1/traces"


def check_that_it_costs_nothing(endpoint: str, protocol: str) -> None:
    before = set(threading.enumerate())
    traces = OtlpTraces(endpoint, protocol, "falcon")
    started_s = time.monotonic()
    for _ in range(5_000):  # more than the queue holds
        traces.start("generate", {}).end()
    assert time.monotonic() - started_s < 5.0
    started_s = time.monotonic()
    traces.close()
    assert time.monotonic() - started_s < SHUTDOWN_S + 0.5
    left = {
        thread
        for thread in set(threading.enumerate()) - before
        if not thread.name.startswith("collector")  # of the test's own, on the other side
    }
    for thread in left:  # they have been told to end: a moment, not the exporter's ten seconds
        thread.join(2.0)
    assert not [thread for thread in left if thread.is_alive()]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("kind", ["silent", "refusing", "failing"])
def test_requests_do_not_notice_a_dead_collector(
    collector: Collector, kind: str, protocol: str
) -> None:
    """Requests traced to a good collector and to a bad one take turns, on an engine that costs
    nothing: whatever tracing costs shows. R-30's own bound is held in tests/e2e."""
    good_s: list[float] = []
    bad_s: list[float] = []
    good = OtlpTraces(collector.endpoint, "grpc", "falcon")
    with no_good(kind, protocol) as root:
        traces = OtlpTraces(endpoint_of(root, protocol), protocol, "falcon")
        with (
            EdgeServer(say(STORY), traces=good) as fortunate,
            EdgeServer(say(STORY), traces=traces) as unfortunate,
        ):
            for _ in range(60):
                for server, times_s in ((fortunate, good_s), (unfortunate, bad_s)):
                    started_s = time.perf_counter()
                    assert server.http.post("/generate", json=BODY).status_code == 200
                    times_s.append(time.perf_counter() - started_s)
        started_s = time.monotonic()
        traces.close()
        assert time.monotonic() - started_s < 2.0
    assert traces.spans_ended == 60 * 5 and traces.spans_exported == 0
    good.close()
    # A collector that held requests up would cost seconds. What retrying costs is processor time.
    assert median(bad_s) < 1.5 * median(good_s) + 0.005
