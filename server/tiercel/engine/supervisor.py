"""Starts the engine process, waits until it is ready, watches it, and ends it in order."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from tiercel.engine.paths import options_file
from tiercel.engine.socket_client import SocketEngineClient
from tiercel.errors import ConfigError, EngineDied, StartupError, with_exit_code
from tiercel.wire.messages import EngineReady, EngineStep, LoadProgress
from tiercel.wire.options import EngineOptions

logger = logging.getLogger(__name__)

WATCH_S = 0.25
STOP_S = 5.0


class EngineSupervisor:
    """One engine process and the client that talks to it. Use: start, wait_ready, watch, stop."""

    def __init__(
        self,
        options: EngineOptions,
        *,
        heartbeat_timeout_s: float,
        step_timeout_s: float,
        environment: dict[str, str],
        on_step: Callable[[EngineStep], None],
        on_progress: Callable[[LoadProgress], None],
    ) -> None:
        self._options = options
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._step_timeout_s = step_timeout_s
        self._environment = environment
        self._directory = Path(tempfile.mkdtemp(prefix="tiercel-"))  # mode 0700
        try:
            self.client = SocketEngineClient(
                self._directory, on_step=on_step, on_progress=on_progress
            )
        except zmq.ZMQError as error:  # a path longer than the system allows
            shutil.rmtree(self._directory)
            raise ConfigError(
                f"cannot make a socket in {self._directory} ({error}); set TMPDIR to a shorter path"
            ) from None
        self._process: subprocess.Popen[bytes] | None = None
        self._end_seen = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process. It gets its own session, so that Ctrl-C reaches it through us only."""
        options_file(self._directory).write_bytes(msgspec.json.encode(self._options))
        self._process = subprocess.Popen(
            # -P: the current folder may hold a model, and what lies there must not be imported.
            [
                sys.executable,
                "-P",
                "-m",
                "tiercel.engine.process",
                str(self._directory),
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            env=self._environment,
            # Ctrl-C is not for it. Not a session of its own: Linux weighs sessions against each
            # other (autogroups), and would not see how much nicer the sandbox's children are.
            process_group=0,
        )

    async def wait_ready(self) -> EngineReady:
        """The engine's limits once it can serve. Raises StartupError with its reason otherwise."""
        ready = asyncio.ensure_future(self.client.wait_ready())
        try:
            while not ready.done():
                await asyncio.wait([ready], timeout=WATCH_S)
                if not ready.done() and (error := self._ended() or self._late()) is not None:
                    raise error
            # Both sides are connected: without the files, nothing is left behind by a SIGKILL.
            shutil.rmtree(self._directory, ignore_errors=True)
            return ready.result()
        finally:
            ready.cancel()

    async def watch(self) -> StartupError:
        """Returns when the engine is gone or late, having failed all requests in flight."""
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(WATCH_S)
            # A loop that was stopped itself (Ctrl-Z, a paused container) has read nothing since.
            self.client.forgive(max(0.0, loop.time() - before - 2 * WATCH_S))
            error = self._ended() or self._late() or self.client.defect
            if error is not None:
                self.client.fail(str(error))
                return error

    async def stop(self) -> None:
        """Ask the engine to end, then make it; remove its files. A failed one is not asked."""
        process = self._process
        if process is not None and process.poll() is None and self.client.health().healthy:
            self.client.shutdown()
            deadline = asyncio.get_running_loop().time() + STOP_S
            while process.poll() is None and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.02)
        self.kill()
        self.client.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self) -> None:
        """End the engine and its ranks now."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _ended(self) -> StartupError | None:
        code = self._process.poll() if self._process is not None else None
        if code is None:
            return None
        failure = self.client.failure
        if failure is not None:
            return with_exit_code(failure.exit_code, failure.message)
        if not self._end_seen:  # its last words may still be on their way: look again next time
            self._end_seen = True
            return None
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return EngineDied(f"the engine process ended {how}")

    def _late(self) -> StartupError | None:
        if self.client.silent_s > self._heartbeat_timeout_s:
            return EngineDied(
                f"the engine process has not been heard for {self.client.silent_s:.0f} s"
            )
        if self.client.step_running_s > self._step_timeout_s:
            return EngineDied(f"one step has taken {self.client.step_running_s:.0f} s")
        return None
