"""`tiercel serve`: the phases of the API process, from the model's folder to the last exit code.

Resolve the model, start the engine, wait until it is ready, open the port, serve; then drain after
SIGTERM, or end at once when the engine is gone. Owns signals and process order, no HTTP routes.
"""

import asyncio
import contextlib
import gc
import importlib.metadata
import ipaddress
import logging
import math
import platform
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn
import uvloop

import tiercel
from tiercel import eyas
from tiercel.api.app import create_app
from tiercel.api.auth import ApiKey, KeyRing, load_keys
from tiercel.api.edge import ServerState
from tiercel.api.http_protocol import ReceiveLimits, limited_protocol
from tiercel.api.metrics import create_metrics_app
from tiercel.api.platforms.vertex import check_routes
from tiercel.engine.supervisor import EngineSupervisor
from tiercel.errors import ConfigError, RankLost, StartupError
from tiercel.guidance import gate as grammars
from tiercel.listen import HttpServer, bind, cannot_listen
from tiercel.metrics_port import MetricsPort
from tiercel.model.progress import Advance, ByteLines, byte_bar
from tiercel.observed import StartClock, tell_health, tell_start, tell_what
from tiercel.parallel.launch import start_rank
from tiercel.sandbox.pool import SandboxPool
from tiercel.settings import Settings
from tiercel.telemetry.logs import configure_logging
from tiercel.telemetry.metrics import Metrics
from tiercel.telemetry.traces import OtlpTraces
from tiercel.text.chat import ChatTemplate
from tiercel.text.files import TOKENIZER
from tiercel.text.tokenizer import Tokenizer
from tiercel.wire.messages import EngineReady, LoadProgress

logger = logging.getLogger(__name__)

# After the engine's death: long enough for error events to leave and for a probe to see the 503.
FATAL_LINGER_S = 3.0
POLL_S = 0.05


def serve(settings: Settings) -> int:
    """Run the server to its end; returns the exit code. Raises StartupError."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # PID 1 has no default for it
    configure_logging(settings.log_level, settings.json_output)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if settings.ignored():
        logger.info("accepted and without effect: %s", ", ".join(settings.ignored()))
    if settings.env:
        logger.info("environment: %s", _environment())
    check_routes(settings.aip_health_route, settings.aip_predict_route)
    clock = StartClock()
    folder, name = _resolve(settings)
    clock.passed("resolve")
    world = settings.world
    if world is not None and world.rank > 0:
        return _follow(settings, folder, world.rank)
    return uvloop.run(_Server(settings, folder, name, clock).run())


def _follow(settings: Settings, folder: Path, rank: int) -> int:
    """A rank that serves nobody: the first one does, and tells this one when the group ends."""
    configure_logging(settings.log_level, settings.json_output, rank)
    child = start_rank(settings.engine_options(folder), environment=settings.child_environment())
    signals = iter((signal.SIGTERM, signal.SIGKILL))
    signalled = False

    def stop(*_: object) -> None:
        """The rank obeys until it has met the others; then the first one drains and ends them all.
        A second signal ends it now.
        """
        nonlocal signalled
        signalled = True
        child.send_signal(next(signals, signal.SIGKILL))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    code = child.wait()
    if code >= 0:
        return code
    return 0 if signalled and code == -signal.SIGTERM else RankLost.exit_code


def _environment() -> str:
    """Versions and machine, for --env. No variables: there are secrets among them."""
    packages = ("torch", "transformers", "tokenizers")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    python = f"python {platform.python_version()}"
    return ", ".join([f"tiercel {tiercel.__version__}", python, *versions, platform.platform()])


def _resolve(settings: Settings) -> tuple[Path, str]:
    if settings.model_id is None:
        return eyas.path(), "tiercel/eyas"
    from tiercel.model.hub import hide_bars, resolve_model

    if settings.json_output:
        hide_bars()
    folder = resolve_model(
        settings.model_id, settings.revision, cache_dir=settings.huggingface_hub_cache
    )
    return folder, settings.model_id


class LoadBar:
    """The engine's loading on stderr: a bar, or lines of the log where all is lines."""

    def __init__(self, *, as_lines: bool) -> None:
        self._bar = contextlib.ExitStack()
        self._lines = ByteLines("loading", logger.info) if as_lines else None
        self._advance: Advance | None = None
        self._done_bytes = 0

    def update(self, message: LoadProgress) -> None:
        """Show how far the engine is."""
        if self._lines is not None:
            self._lines(message.done_bytes, message.total_bytes)
            return
        if self._advance is None:
            self._advance = self._bar.enter_context(
                byte_bar("Loading weights", message.total_bytes)
            )
        self._advance(message.done_bytes - self._done_bytes)
        self._done_bytes = message.done_bytes

    def close(self) -> None:
        """Leave the line as it is."""
        self._bar.close()


class _Server:
    """One run of the API process."""

    def __init__(self, settings: Settings, folder: Path, name: str, clock: StartClock) -> None:
        self._settings = settings
        self._clock = clock
        self._folder = folder
        self._name = name
        self._state = ServerState()
        self._keys = KeyRing(_load_keys(settings))
        self._signals = 0
        self._stop_requested = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self) -> int:
        tokenizer = self._tokenizer()
        chat_template = ChatTemplate.load(
            self._folder, self._name, self._settings.tokenizer_config_path
        )
        self._clock.passed("tokenizer")
        listener = bind(self._settings.hostname, self._settings.port)
        bar = LoadBar(as_lines=self._settings.json_output or not sys.stderr.isatty())
        metrics = self._metrics()
        port = self._metrics_port(metrics)
        supervisor = EngineSupervisor(
            self._settings.engine_options(self._folder),
            heartbeat_timeout_s=self._settings.heartbeat_timeout,
            step_timeout_s=self._settings.step_timeout,
            environment=self._settings.child_environment(),
            on_step=metrics.observe_step,
            on_progress=bar.update,
        )
        self._handle_signals()
        try:
            supervisor.start()
            ready = await self._wait_ready(supervisor)
            bar.close()
            if ready is None:
                return 0
            self._clock.passed("engine")
            options = self._settings.edge_options(self._name, ready)
            metrics.configure(options)
            traces = _traces(self._settings)
            tell_what(metrics, options, ready)
            tell_health(metrics, supervisor, self._state, traces)
            tell_start(metrics, self._clock, ready)
            if port is not None:
                port.start()
            app = create_app(
                supervisor.client, tokenizer, options, metrics, self._state, self._keys, traces,
                chat_template, self._sandbox(chat_template),
            )  # fmt: skip
            try:
                return await self._serve(app, listener, supervisor, ready)
            finally:
                if traces is not None:
                    await asyncio.to_thread(traces.close)
        finally:
            bar.close()
            listener.close()
            if port is not None:
                await port.stop()
            await supervisor.stop()

    def _metrics(self) -> Metrics:
        settings = self._settings
        alias = self._name if settings.metrics_alias == "vllm" else None
        return Metrics(settings.metrics_buckets, vllm_names_for=alias)

    def _metrics_port(self, metrics: Metrics) -> MetricsPort | None:
        """Bound now, so that a busy port is no surprise after the model has loaded."""
        settings = self._settings
        if settings.prometheus_port is None:
            return None
        listener = bind(settings.hostname, settings.prometheus_port, "--prometheus-port")
        app = create_metrics_app(metrics, self._keys, protect_metrics=settings.protect_metrics)
        return MetricsPort(app, listener, self._receive_limits())

    def _receive_limits(self) -> ReceiveLimits:
        return ReceiveLimits(
            header_timeout_s=self._settings.header_timeout,
            body_timeout_s=self._settings.body_timeout,
        )

    def _sandbox(self, chat_template: ChatTemplate) -> SandboxPool:
        """With a lane for each job; its processes start and end with the app."""
        sandbox = SandboxPool(self._settings.child_environment())
        chat_template.add_to(sandbox)
        if not self._settings.disable_grammar_support:
            grammars.add_to(sandbox, str(self._folder))
        return sandbox

    async def _wait_ready(self, supervisor: EngineSupervisor) -> EngineReady | None:
        """None when a signal came first."""
        ready = asyncio.ensure_future(supervisor.wait_ready())
        stopped = asyncio.ensure_future(self._stop_requested.wait())
        await asyncio.wait([ready, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if ready.done():
            return ready.result()
        ready.cancel()
        return None

    async def _serve(
        self,
        app: Callable[..., object],
        listener: socket.socket,
        supervisor: EngineSupervisor,
        ready: EngineReady,
    ) -> int:
        http = HttpServer(
            uvicorn.Config(
                app,
                http=limited_protocol(self._receive_limits()),
                ws="none",
                timeout_keep_alive=math.ceil(self._settings.idle_timeout),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,  # for GETs: the drain has waited for all else
            )
        )
        # A full collection stops every stream, and the libraries are most of what it walks through:
        # 76 and 95 ms within 600 requests on two cores of an AMX Xeon, once 16 ms without them.
        gc.collect()
        gc.freeze()
        serving = asyncio.ensure_future(http.serve(sockets=[listener]))
        watching = asyncio.ensure_future(supervisor.watch())
        stopping = asyncio.ensure_future(self._stop_requested.wait())
        while not http.started and not serving.done():
            await asyncio.sleep(POLL_S)
        if serving.done():
            watching.cancel()
            stopping.cancel()
            hostname, number = self._settings.hostname, self._settings.port
            raise cannot_listen(hostname, number, serving.exception())
        self._announce(listener, ready)
        await asyncio.wait([serving, watching, stopping], return_when=asyncio.FIRST_COMPLETED)
        try:
            if watching.done():
                return await self._engine_died(watching.result())
            return await self._drain(supervisor, watching)
        finally:
            http.should_exit = True
            await serving
            for task in (watching, stopping):
                task.cancel()

    async def _engine_died(self, error: StartupError) -> int:
        """Requests in flight have their error already; let it leave, and let probes see the 503."""
        logger.critical("%s; the server ends with exit code %d", error, error.exit_code)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop_now.wait(), FATAL_LINGER_S)
        return error.exit_code

    async def _drain(
        self, supervisor: EngineSupervisor, watching: "asyncio.Future[StartupError]"
    ) -> int:
        """Finish what runs, refuse what is new; 0 also when the time is up."""
        self._state.draining = True
        logger.info("draining: %d requests in flight", self._state.owed)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.graceful_termination_timeout
        while self._state.owed and loop.time() < deadline and not self._stop_now.is_set():
            if watching.done():
                return await self._engine_died(watching.result())
            await asyncio.sleep(POLL_S)
        if watching.done():  # it died under the last ones: their end was no success
            return await self._engine_died(watching.result())
        if self._state.owed:
            supervisor.client.end_streams("the server is shutting down")
            await asyncio.sleep(2 * POLL_S)
        return 0

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._reload_keys)

    def _on_signal(self) -> None:
        """The first signal drains, the second ends now."""
        self._signals += 1
        self._stop_requested.set()
        if self._signals > 1:
            self._stop_now.set()

    def _reload_keys(self) -> None:
        """SIGHUP: the keys file is read again. Nothing changes when it cannot be used."""
        if self._settings.api_keys_file is None:
            logger.info("SIGHUP is ignored: there is no --api-keys-file to read again")
            return
        try:
            keys = _load_keys(self._settings)
        except ConfigError as error:
            logger.error("the API keys stay as they were: %s", error)
            return
        self._keys.replace(keys)
        logger.info("%d API keys are valid now", len(keys))

    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.load(self._folder)
        if tokenizer.lost_bytes:
            logger.warning(
                "%s has no token for %s: what holds such bytes is read without them",
                self._folder / TOKENIZER,
                ", ".join(f"byte 0x{byte:02X}" for byte in tokenizer.lost_bytes),
            )
        return tokenizer

    def _announce(self, listener: socket.socket, ready: EngineReady) -> None:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if not self._keys and not ipaddress.ip_address(host).is_loopback:
            logger.warning(
                "everybody who reaches %s may use this server: set API_KEY or --api-keys-file",
                address,
            )
        arithmetic = ready.dtype
        if ready.quantize is not None:
            arithmetic += f" with layers in {ready.quantize}"
        logger.info(
            "serving %s in %s on %s at %s: %d tokens of KV cache, loaded in %.1f s, warm in %.1f s",
            self._name, arithmetic, ready.device, address, ready.max_batch_total_tokens,
            ready.load_s, ready.warmup_s,
        )  # fmt: skip
        settings = self._settings
        if not settings.json_output and (sys.stderr.isatty() or settings.model_id is None):
            parameters = '{"max_new_tokens": 40, "temperature": 0.7, "top_k": 50}'
            body = f'{{"inputs": "Fellow citizens,", "parameters": {parameters}}}'
            page = "" if settings.disable_playground else f"\n  {address}/playground\n"
            print(  # noqa: T201 (the newcomer's first lines)
                f"\nTiercel is ready at {address}\n\n  curl {address}/generate "
                f"-H 'Content-Type: application/json' \\\n       -d '{body}'\n{page}",
                file=sys.stderr,
                flush=True,
            )


def _load_keys(settings: Settings) -> list[ApiKey]:
    """Raises ConfigError."""
    given = [key.get_secret_value() for key in settings.api_key]
    return load_keys(given, settings.api_keys_file, need_admin=settings.protect_metrics)


def _traces(settings: Settings) -> OtlpTraces | None:
    endpoint = settings.traces_endpoint
    if endpoint is None:
        return None
    return OtlpTraces(endpoint, settings.otlp_protocol, settings.otlp_service_name)
