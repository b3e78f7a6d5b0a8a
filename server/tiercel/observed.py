"""What the API process tells its metrics about itself, its engine and its start.

Only reads: everything is asked for when somebody scrapes, or set once.
"""

import functools
import importlib.metadata
import platform
import time

import psutil

import tiercel
from tiercel.api.edge import ServerState
from tiercel.api.options import EdgeOptions
from tiercel.engine.supervisor import EngineSupervisor
from tiercel.telemetry.metrics import Metrics
from tiercel.telemetry.traces import OtlpTraces
from tiercel.wire.messages import EngineReady


class StartClock:
    """The phases of the start, each from the end of the one before."""

    def __init__(self) -> None:
        self._begun_s = self._latest_s = time.monotonic()
        self.phases_s: dict[str, float] = {}

    def passed(self, phase: str) -> None:
        """A phase has ended now."""
        now = time.monotonic()
        self.phases_s[phase] = now - self._latest_s
        self._latest_s = now

    @property
    def total_s(self) -> float:
        """All so far."""
        return time.monotonic() - self._begun_s


def tell_start(metrics: Metrics, clock: StartClock, ready: EngineReady) -> None:
    """Once the port is open. Loading and warming are the engine's, within the phase `engine`."""
    phases = {**clock.phases_s, "load": ready.load_s, "warmup": ready.warmup_s}
    for phase, seconds in {**phases, "total": clock.total_s}.items():
        metrics.server.startup.labels(phase).set(seconds)


def tell_what(metrics: Metrics, options: EdgeOptions, ready: EngineReady) -> None:
    """Versions, configuration and sizes, which do not change."""
    server = metrics.server
    versions = (tiercel.__version__, platform.python_version(), importlib.metadata.version("torch"))
    server.build.labels(*versions).set(1)
    server.config.labels(
        options.model_id, ready.dtype, ready.quantize or "none", ready.device,
        str(ready.max_input_tokens),
        str(ready.max_total_tokens), str(ready.max_batch_prefill_tokens),
        str(options.max_concurrent_requests),
    ).set(1)  # fmt: skip
    server.cache.labels(str(ready.block_tokens), str(ready.total_blocks)).set(1)
    server.start_time.set(psutil.Process().create_time())
    server.memory.labels("weights").set(ready.weights_bytes)
    server.memory.labels("kv_cache").set(ready.cache_bytes)
    server.ranks.set(ready.ranks)
    for rank, held in enumerate(ready.rank_memory):
        server.rank_memory.labels(str(rank), "weights").set(held.weights_bytes)
        server.rank_memory.labels(str(rank), "kv_cache").set(held.cache_bytes)


def tell_health(
    metrics: Metrics,
    supervisor: EngineSupervisor,
    state: ServerState,
    traces: OtlpTraces | None,
) -> None:
    """What is asked for with every scrape: plain reads only."""
    client = supervisor.client
    metrics.server.add_health(
        lambda: float(client.health().healthy),
        lambda: client.silent_s,
        lambda: client.step_running_s,
    )
    metrics.server.add_edge(lambda: float(state.draining), lambda: float(state.in_flight))
    memory = metrics.server.memory
    memory.labels("api_resident").set_function(lambda: _resident_bytes(None))
    memory.labels("engine_resident").set_function(lambda: _resident_bytes(supervisor.pid))
    for rank in range(client.ready.ranks):
        age_s = functools.partial(client.rank_silent_s, rank)
        metrics.server.rank_heartbeat.labels(str(rank)).set_function(age_s)
    if traces is not None:
        metrics.server.add_spans(lambda: traces.spans_ended, lambda: traces.spans_exported)


@functools.cache
def _process(pid: int | None) -> psutil.Process:
    return psutil.Process(pid)


def _resident_bytes(pid: int | None) -> float:
    """Of this process without a `pid`; 0 for one that is gone."""
    try:
        return float(_process(pid).memory_info().rss)
    except psutil.Error:
        return 0.0
