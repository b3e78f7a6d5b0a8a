"""Writes dashboards/tiercel.json: `python deploy/grafana/build.py`. A test checks that it was run.

A panel is a title, a unit and its expressions with legends; what Grafana wants around them is the
same for all of them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards" / "tiercel.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PICKED = 'job=~"$job",instance=~"$instance"'
WIDTH, HEIGHT, ROW = 8, 7, 24  # grid units


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    queries: list[tuple[str, str]]  # expression, legend
    about: str = ""


@dataclass(frozen=True)
class Row:
    title: str
    panels: list[Panel] = field(default_factory=list)


def rate(name: str, by: str = "", more: str = "") -> str:
    """A counter's growth per second, summed over servers."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({name}{{{PICKED}{more}}}[$__rate_interval]))"


def quantiles(name: str, more: str = "") -> list[tuple[str, str]]:
    """p50, p90 and p99 of a histogram."""
    growth = rate(f"{name}_bucket", "le", more)
    return [(f"histogram_quantile({q}, {growth})", f"p{q * 100:.0f}") for q in (0.5, 0.9, 0.99)]


def gauge(name: str, legend: str = "{{instance}}", more: str = "") -> list[tuple[str, str]]:
    return [(f"{name}{{{PICKED}{more}}}", legend)]


def ratio(part: str, whole: str, legend: str) -> list[tuple[str, str]]:
    return [(f"{part} / {whole}", legend)]


FIRST, TOKEN = "tiercel_time_to_first_token_seconds", "tiercel_inter_token_latency_seconds"
ROWS = [
    Row(
        "Service level",
        [
            Panel("Time to first token", "s", quantiles(FIRST)),
            Panel("Time between tokens", "s", quantiles(TOKEN)),
            Panel("Duration of a request", "s", quantiles("tiercel_request_duration_seconds")),
            Panel(
                "First token within 1 s",
                "percentunit",
                ratio(
                    rate(f"{FIRST}_bucket", more=',le="1.0"'), rate(f"{FIRST}_count"), "share"
                ),
            ),
            Panel(
                "Failed by the server",
                "percentunit",
                ratio(
                    rate("tgi_request_failure", more=',err=~"generation|incomplete"'),
                    rate("tgi_request_count"),
                    "share",
                ),
                "Share of requests that broke. Refusals and clients that left are not in it.",
            ),
            Panel(
                "Requests",
                "reqps",
                [
                    (rate("tgi_request_success"), "finished"),
                    (rate("tgi_request_failure", "err"), "{{err}}"),
                ],
            ),
        ],
    ),
    Row(
        "Saturation",
        [
            Panel(
                "Running and waiting",
                "short",
                gauge("tiercel_requests_running", "running {{instance}}")
                + gauge("tiercel_requests_waiting", "waiting {{instance}}"),
            ),
            Panel("Tokens that wait", "short", gauge("tiercel_queue_tokens")),
            Panel("Time in the queue", "s", quantiles("tiercel_queue_time_seconds")),
            Panel("KV cache in use", "percentunit", gauge("tiercel_kv_cache_usage_ratio")),
            Panel("Preemptions", "cps", [(rate("tiercel_preemptions_total"), "preemptions")]),
            Panel(
                "Refused",
                "reqps",
                [(rate("tiercel_requests_rejected_total", "reason"), "{{reason}}")],
            ),
        ],
    ),
    Row(
        "Batching",
        [
            Panel(
                "Tokens per second",
                "short",
                [
                    (rate("tiercel_generated_tokens_total"), "generated"),
                    (rate("tiercel_prompt_tokens_total"), "prompt"),
                ],
            ),
            Panel(
                "Step with prefill",
                "s",
                quantiles("tiercel_step_duration_seconds", ',method="prefill"'),
            ),
            Panel(
                "Step without",
                "s",
                quantiles("tiercel_step_duration_seconds", ',method="decode"'),
            ),
            Panel("Tokens per step", "short", quantiles("tiercel_step_tokens")),
            Panel("Tokens of a prompt", "short", quantiles("tgi_request_input_length")),
            Panel("Tokens of an answer", "short", quantiles("tgi_request_generated_tokens")),
        ],
    ),
    Row(
        "KV cache",
        [
            Panel("Blocks", "short", gauge("tiercel_kv_blocks", "{{state}} {{instance}}")),
            Panel(
                "Prompt tokens found in the prefix cache",
                "percentunit",
                ratio(
                    rate("tiercel_prefix_cache_hit_tokens_total"),
                    rate("tiercel_prefix_cache_query_tokens_total"),
                    "share",
                ),
            ),
            Panel("Memory", "bytes", gauge("tiercel_memory_bytes", "{{kind}} {{instance}}")),
        ],
    ),
    Row(
        "Reliability",
        [
            Panel("Engine up, draining", "short",
                  gauge("tiercel_engine_up", "up {{instance}}")
                  + gauge("tiercel_draining", "draining {{instance}}")),
            Panel("Heartbeat age", "s", gauge("tiercel_engine_heartbeat_age_seconds")),
            Panel("Event loop lag", "s", quantiles("tiercel_event_loop_lag_seconds")),
            Panel(
                "Clients that left",
                "reqps",
                [
                    (rate("tiercel_requests_cancelled_total", "stage"), "{{stage}}"),
                    (rate("tiercel_slow_client_aborts_total"), "read too slowly"),
                ],
            ),
            Panel("Open streams", "short", gauge("tiercel_sse_streams_open")),
            Panel(
                "Restarts",
                "short",
                [(f"changes(tiercel_start_time_seconds{{{PICKED}}}[1h])", "{{instance}}")],
                "Within the last hour.",
            ),
        ],
    ),
    Row(
        "Ranks",
        [
            Panel("Ranks that share the model", "short", gauge("tiercel_ranks")),
            Panel(
                "Memory of a rank",
                "bytes",
                gauge("tiercel_rank_memory_bytes", "{{kind}} of rank {{rank}} {{instance}}"),
            ),
            Panel(
                "Heartbeat age of a rank",
                "s",
                gauge("tiercel_rank_heartbeat_age_seconds", "rank {{rank}} {{instance}}"),
                "The server gives the group up at --heartbeat-timeout.",
            ),
        ],
    ),
    Row(
        "Start and configuration",
        [
            Panel(
                "Phases of the start",
                "s",
                gauge("tiercel_startup_phase_seconds", "{{phase}} {{instance}}"),
            ),
            Panel("Versions", "short", gauge("tiercel_build_info", "{{version}} torch {{torch}}")),
            Panel("Served", "short", gauge("tiercel_config_info", "{{model}} {{dtype}}")),
        ],
    ),
]  # fmt: skip


def document() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for row in ROWS:
        panels.append(_row(row.title, len(panels) + 1, top))
        top += 1
        for index, panel in enumerate(row.panels):
            left = index * WIDTH % ROW
            at = top + index * WIDTH // ROW * HEIGHT
            panels.append(_panel(panel, len(panels) + 1, left, at))
        top += -(-len(row.panels) * WIDTH // ROW) * HEIGHT
    return {
        "uid": "tiercel",
        "title": "Tiercel",
        "tags": ["tiercel", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_source(), _label("job"), _label("instance")]},
        "panels": panels,
    }


def _row(title: str, number: int, top: int) -> dict[str, Any]:
    at = {"x": 0, "y": top, "w": ROW, "h": 1}
    return {"id": number, "type": "row", "title": title, "gridPos": at, "panels": []}


def _panel(panel: Panel, number: int, left: int, top: int) -> dict[str, Any]:
    targets = [
        {"refId": chr(65 + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        for index, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"x": left, "y": top, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": targets,
    }


def _source() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}


def _label(name: str) -> dict[str, Any]:
    query = f"label_values(tiercel_engine_up, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(document(), indent=1) + "\n")
