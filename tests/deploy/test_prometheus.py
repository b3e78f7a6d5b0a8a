"""A real Prometheus scrapes a loaded server: every expression of the boards returns data.

TGI's own board is another project's file. Its expressions are listed in support/tgi_board.py; where
TGI_DASHBOARD names the file itself, the list is compared with it. What the contract's names add to
them is tried as well.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import tgi_board
from support.conformance_collector import Collector
from support.server import make_server
from support.tools import tool
from tiercel.bench.server import ServerProcess, free_port

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LABEL = 'container="tgi"'
LOAD_S = 12.0


class Prometheus:
    """Debian's program, with a server to scrape twice a second."""

    def __init__(self, folder: Path, server: ServerProcess) -> None:
        self._port = free_port()
        self._folder = folder
        target = f"{server.host}:{server.port}"
        labels = {"container": "tgi", "instance": "one"}
        job = {"job_name": "tiercel", "static_configs": [{"targets": [target], "labels": labels}]}
        config = {"global": {"scrape_interval": "500ms"}, "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML

    def __enter__(self) -> "Prometheus":
        command = [
            tool("prometheus"), f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}", "--enable-feature=exemplar-storage",
        ]  # fmt: skip
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(30)

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        response = self._http.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def values(self, expression: str) -> list[str]:
        """The values that an expression has now, NaN left out."""
        found = self.ask("query", query=expression)["result"]
        return [each["value"][1] for each in found if each["value"][1] != "NaN"]


def load(server: ServerProcess) -> None:
    """Requests of all kinds, some of them refused, some left by their client."""
    trace = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}

    def work(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            until_s = time.monotonic() + LOAD_S
            turn = 0
            while time.monotonic() < until_s:
                turn += 1
                inputs = "Call me Ishmael. " * (turn % 7 + 1) + str(number * turn)
                limits = {"max_new_tokens": 5 + turn % 20}
                body = {"inputs": inputs, "parameters": limits}
                http.post("/generate", json=body, headers=trace)
                http.post("/generate", json={**body, "parameters": {"temperature": 0}})
                with http.stream("POST", "/generate_stream", json=body) as stream:
                    if turn % 3 == 0:
                        for _ in stream.iter_lines():
                            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    collector = Collector()
    flags = ("--otlp-endpoint", collector.endpoint, "--metrics-alias", "vllm")
    with make_server(folder, None, *flags) as server, Prometheus(folder, server) as running:
        wait_for(running.ready)
        load(server)
        time.sleep(1.5)  # two more scrapes
        yield running
    collector.stop()


def wait_for(condition: Any, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_scrape_is_openmetrics_and_healthy(prometheus: Prometheus) -> None:
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    # Names as they are stored: with nothing added by the format that Prometheus chose.
    names = set(prometheus.ask("label/__name__/values"))
    assert {"tgi_request_count", "tgi_batch_concat", "tiercel_preemptions_total"} <= names
    assert not [name for name in names if name.startswith("tgi_") and name.endswith("_total")]
    start, end = str(time.time() - 300), str(time.time() + 5)
    query = "tiercel_time_to_first_token_seconds_bucket"
    found = prometheus.ask("query_exemplars", query=query, start=start, end=end)
    exemplars = [each["labels"]["trace_id"] for series in found for each in series["exemplars"]]
    assert "ab" * 16 in exemplars


def test_every_expression_of_our_board_returns_data(prometheus: Prometheus) -> None:
    board = json.loads((ROOT / "deploy/grafana/dashboards/tiercel.json").read_text())
    expressions = list(_expressions(board["panels"]))
    assert len(expressions) > 50
    empty = [each for each in expressions if not prometheus.values(_filled(each))]
    assert empty == []


def _quantiles(name: str, more: str = "") -> list[str]:
    growth = f"sum by (le) (rate({name}_bucket{{{LABEL}{more}}}[1m]))"
    return [f"histogram_quantile({q}, {growth})" for q in (0.5, 0.9, 0.99)]


def _heatmap(name: str, more: str = "") -> str:
    return f"sum(increase({name}_bucket{{{LABEL}{more}}}[1m])) by (le)"


def _contract() -> Iterator[str]:
    """What the contract says that TGI's board shows (section 4.1, and D4 on its panels)."""
    for name in ("count", "success"):
        yield f"sum(increase(tgi_request_{name}{{{LABEL}}}[1m]))"
    yield f"sum(increase(tgi_request_failure{{{LABEL}}}[1m])) by (err)"
    yield f"sum(increase(tgi_batch_concat{{{LABEL}}}[1m])) by (reason)"
    yield f"count(tgi_request_count{{{LABEL}}})"
    for name in ("tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens"):
        yield f"avg({name}{{{LABEL}}})"
    for name in (
        "request_duration", "request_queue_duration", "request_mean_time_per_token_duration",
        "request_input_length", "request_generated_tokens", "request_skipped_tokens",
    ):  # fmt: skip
        yield from _quantiles(f"tgi_{name}")
        yield _heatmap(f"tgi_{name}")
    generated = "tgi_request_generated_tokens"
    yield f"rate({generated}_sum{{{LABEL}}}[1m]) / rate({generated}_count{{{LABEL}}}[1m]) > 0"
    for name in ("inference", "forward", "decode", "filter", "concat"):
        yield from _quantiles(f"tgi_batch_{name}_duration", ',method="decode"')
        yield _heatmap(f"tgi_batch_{name}_duration", ',method="decode"')
    yield from _quantiles("tgi_batch_inference_duration", ',method="prefill"')
    yield f"({_quantiles('tgi_batch_forward_duration', ',method=' + chr(34) + 'decode' + chr(34))[0]} * 1000) > 0"  # noqa: E501


def test_what_tgis_board_asks_for_returns_data(prometheus: Prometheus) -> None:
    expressions = list(_contract())
    assert len(expressions) > 50
    assert [each for each in expressions if not prometheus.values(each)] == []


@pytest.mark.parametrize("expression", list(tgi_board.expressions()))
def test_every_expression_of_tgis_board_returns_data(
    prometheus: Prometheus, expression: str
) -> None:
    assert prometheus.values(expression.replace("$service", "tgi"))


def test_the_list_is_tgis_board() -> None:
    listed = list(tgi_board.expressions())
    assert len(listed) == len(set(listed)) == 54
    path = os.environ.get("TGI_DASHBOARD")
    if path is None:
        pytest.skip("TGI_DASHBOARD does not name TGI's published tgi_grafana.json to compare with")
    assert set(_expressions(json.loads(Path(path).read_text()))) == set(listed)


@pytest.mark.parametrize(
    "expression",
    [
        'vllm:num_requests_waiting{model_name="tiercel/eyas"}',
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
        "histogram_quantile(0.9, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket[1m])))",
        "sum by (finished_reason) (rate(vllm:request_success_total[1m])) > 0",
        "rate(vllm:generation_tokens_total[1m]) > 0",
        'vllm:cache_config_info{block_size="16"}',
    ],
)
def test_vllms_names_return_data(prometheus: Prometheus, expression: str) -> None:
    assert prometheus.values(expression)


def test_promtool_reads_the_page(tmp_path: Path) -> None:
    """What it has to say about style concerns names that are not ours to choose."""
    with make_server(tmp_path, None, "--metrics-alias", "vllm") as server:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 3}}
        assert httpx.post(f"{server.url}/generate", json=body, timeout=60).status_code == 200
        page = server.get("/metrics")[1]
    ours = [
        line for line in page.splitlines(keepends=True) if re.match("(# [A-Z]+ )?tiercel_", line)
    ]
    assert len(ours) > 200
    for text, code in (("".join(ours), 0), (page, 3)):
        command = [tool("promtool"), "check", "metrics"]
        run = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
        said = (run.stdout + run.stderr).splitlines()
        assert (
            run.returncode,
            [line for line in said if not line.startswith(("tgi_", "vllm:"))],
        ) == (code, [])


def _expressions(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("expr"), str):
            yield part["expr"]
        for each in part.values():
            yield from _expressions(each)
    elif isinstance(part, list):
        for each in part:
            yield from _expressions(each)


def _filled(expression: str) -> str:
    """With Grafana's variables replaced as Grafana does."""
    for name, value in (("$__rate_interval", "1m"), ("$job", ".*"), ("$instance", ".*")):
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression
