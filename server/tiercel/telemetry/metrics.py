"""What `/metrics` says: TGI's `tgi_*` families under their exact names, and our own `tiercel_*`.

Fed by the edge, one observation per request or delta, and by the engine's messages, one per step.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from tiercel.telemetry.aliases import VLLM_NAMES, VllmText
from tiercel.telemetry.catalogue import Catalogue, Family
from tiercel.telemetry.exposition import FamilyText, Format
from tiercel.telemetry.families import BatchMetrics, EngineMetrics, RequestMetrics, ServerMetrics
from tiercel.telemetry.ladders import Buckets
from tiercel.telemetry.process import ProcessText
from tiercel.wire.messages import EngineStats, EngineStep, StepTiming

PAGE_S = 0.1  # so that two scrapers at 20 Hz cost ten renderings a second, not forty


class _Page(NamedTuple):
    """What has been rendered."""

    at_s: float
    signs: tuple[float, ...]  # what counted requests then
    content: bytes


class Limits(Protocol):
    """The bounds of some histograms are hundredths of these."""

    @property
    def max_input_tokens(self) -> int: ...

    @property
    def max_total_tokens(self) -> int: ...


class _Method:
    """The children of the batch families for one `method`, looked up once."""

    def __init__(self, batch: BatchMetrics, engine: EngineMetrics, method: str) -> None:
        self.count = batch.inference_count.labels(method)
        self.success = batch.inference_success.labels(method)
        self.failure = batch.inference_failure.labels(method)
        self.inference = batch.inference_duration.labels(method)
        self.forward = batch.forward_duration.labels(method)
        self.decode = batch.decode_duration.labels(method)
        self.filter = batch.filter_duration.labels(method)
        self.step = engine.step_seconds.labels(method)


class Metrics:
    """All families of one server. `observe_*` is cheap enough for every step."""

    def __init__(self, buckets: Buckets = "compat", *, vllm_names_for: str | None = None) -> None:
        """`vllm_names_for` is the model's name where vLLM's names are wanted too."""
        self._buckets: Buckets = buckets
        self._vllm_names_for = vllm_names_for
        self._catalogue = Catalogue()
        self._requests: RequestMetrics | None = None
        self.batch = BatchMetrics(self._catalogue, buckets)
        self.engine = EngineMetrics(self._catalogue)
        self.server = ServerMetrics(self._catalogue)
        self._writers: list[FamilyText] = []
        self._process = ProcessText()
        self._pages: dict[Format, _Page] = {}
        self._rendering = threading.Lock()
        self._methods: dict[str, _Method] = {}
        self._merged = self.batch.concat.labels("chunking")
        self._merge_seconds = self.batch.concat_duration.labels("decode")
        self._preemptions = _Growth(self.engine.preemptions.inc)
        self._prefix_hit = _Growth(self.engine.prefix_hit.inc)
        self._prefix_query = _Growth(self.engine.prefix_query.inc)
        self._generated = _Growth(self.engine.generated.inc)
        self._aborted = _Growth(self.engine.aborted.inc)

    def configure(self, limits: Limits) -> None:
        """Once, when the engine has told its limits and before the first request."""
        self._requests = RequestMetrics(
            self._catalogue, limits.max_input_tokens, limits.max_total_tokens, self._buckets
        )

    @property
    def requests(self) -> RequestMetrics:
        """What the edge feeds. Raises RuntimeError before `configure`."""
        if self._requests is None:
            raise RuntimeError("Metrics.configure has not been called")
        return self._requests

    @property
    def families(self) -> list[Family]:
        """All of them, in the order of the text."""
        return list(self._catalogue.families)

    def observe_stats(self, stats: EngineStats) -> None:
        """The scheduler's state: gauges, and counters by how much they grew."""
        batch, engine = self.batch, self.engine
        batch.queue_size.set(stats.waiting)
        batch.batch_size.set(stats.running)
        batch.batch_max_tokens.set(stats.running_max_tokens)
        engine.running.set(stats.running)
        engine.waiting.set(stats.waiting)
        engine.queue_tokens.set(stats.waiting_tokens)
        used = stats.total_blocks - stats.free_blocks
        engine.blocks_used.set(used)
        engine.blocks_cached.set(stats.cached_blocks)
        engine.blocks_free.set(stats.free_blocks - stats.cached_blocks)
        engine.kv_usage.set(used / stats.total_blocks if stats.total_blocks else 0.0)
        self._preemptions.reach(stats.preemptions)
        self._prefix_hit.reach(stats.prefix_hit_tokens)
        self._prefix_query.reach(stats.prefix_query_tokens)
        self._generated.reach(stats.generated_tokens)
        self._aborted.reach(stats.aborted)

    def observe_step(self, step: EngineStep) -> None:
        """One step. A step that prefills anything counts as method `prefill`, else as `decode`."""
        self.observe_stats(step.stats)
        timing = step.timing
        if timing is None:
            return
        method = self._method("prefill" if timing.prefill_tokens else "decode")
        method.count.inc()
        failed = any(delta.error is not None for delta in step.deltas)
        (method.failure if failed else method.success).inc()
        method.inference.observe(timing.total_s)
        method.forward.observe(timing.forward_s)
        method.decode.observe(max(0.0, timing.total_s - timing.forward_s))
        method.filter.observe(timing.apply_s)
        method.step.observe(timing.total_s)
        self.engine.step_tokens.observe(timing.prefill_tokens + timing.decode_rows)
        self.batch.skipped_tokens.observe(0.0)
        if timing.new_rows:
            self._observe_new(step.stats, timing)

    def _observe_new(self, stats: EngineStats, timing: StepTiming) -> None:
        self.batch.next_size.observe(timing.new_rows)
        if stats.running > timing.new_rows:  # batches are never rebuilt: to join is to be merged
            self._merged.inc()
            self._merge_seconds.observe(timing.plan_s)

    def render(self, kind: Format = "text") -> bytes:
        """The exposition of everything, as it is now. The first time takes many times longer."""
        with self._rendering:
            self._add_writers()
            lines = [line for writer in self._writers for line in writer.lines(kind)]
            lines.append(self._process.text(kind))
        if kind == "openmetrics":
            lines.append("# EOF\n")
        return "".join(lines).encode()

    def page(self, kind: Format = "text") -> bytes:
        """As `render`, but what one scraper gets may be what another one got up to PAGE_S ago.

        Unless a request has begun or ended since, or the server's state has changed: whoever asks
        for something and then looks here sees it counted. Only gauges and steps may be so old.
        """
        now, signs = time.monotonic(), self._signs()
        made = self._pages.get(kind)
        if made is not None and now - made.at_s < PAGE_S and made.signs == signs:
            return made.content
        content = self.render(kind)
        self._pages[kind] = _Page(now, signs, content)
        return content

    def _signs(self) -> tuple[float, ...]:
        requests = self._requests
        counters = [] if requests is None else requests.signs
        sums = (sum(child.value for child in each.children.values()) for each in counters)
        return (len(self._catalogue.families), *sums, *self.server.signs())

    def _add_writers(self) -> None:
        """For families that are new since the last time."""
        known = {writer.family.name for writer in self._writers}
        for family in self._catalogue.families:
            if family.name not in known:
                self._writers.append(FamilyText(family))
                if self._vllm_names_for is not None and family.name in VLLM_NAMES:
                    self._writers.append(VllmText(family, self._vllm_names_for))

    def _method(self, name: str) -> _Method:
        method = self._methods.get(name)
        if method is None:
            method = self._methods[name] = _Method(self.batch, self.engine, name)
        return method


class _Growth:
    """Feeds a counter from totals that somebody else keeps."""

    def __init__(self, inc: Callable[[float], None]) -> None:
        self._inc = inc
        self._total = 0

    def reach(self, total: int) -> None:
        if total > self._total:
            self._inc(total - self._total)
            self._total = total
