"""A real `tiercel serve` process on a free loopback port: start, wait, look at, stop.

Used by the benchmark scenarios and by the end-to-end tests. It talks to the process through its
socket, its standard error and its signals only.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tiercel.errors import TiercelError

LOOPBACK = "127.0.0.1"
POLL_S = 0.02


class ServerExited(TiercelError):
    """The process ended while it was waited for. `exit_code` and `log` say what it said."""

    def __init__(self, exit_code: int, log: str) -> None:
        super().__init__(f"the server exited with code {exit_code}:\n{log}")
        self.exit_code = exit_code
        self.log = log


def free_port() -> int:
    """A loopback port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """One server; a context manager that starts it, waits for health and leaves nothing behind.

    `model` is a folder or a hub name, None the embedded model; `environment` replaces the inherited
    one where given; `wrapper` is put before the command (a tracer, say).
    """

    def __init__(
        self,
        log_path: Path,
        model: str | Path | None = None,
        flags: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.host = LOOPBACK
        self.port = free_port()
        self._log_path = log_path
        self._environment = environment
        named = [] if model is None else ["--model-id", str(model)]
        address = ["--hostname", self.host, "--port", str(self.port)]
        serve = [sys.executable, "-m", "tiercel.cli", "serve"]
        self.command = [*wrapper, *serve, *named, *address, *flags]
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_healthy()
        except BaseException:
            self.clean_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clean_up()

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Spawn the process with standard output and error in the log file; returns at once."""
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, env=self._environment
            )

    def wait_healthy(self, timeout_s: float = 120.0) -> None:
        """Return once `/health` answers 200.

        Raises ServerExited when the process ends first, TimeoutError when neither happens.
        """
        deadline = time.monotonic() + timeout_s
        while self.health() != 200:
            exit_code = self._running().poll()
            if exit_code is not None:
                raise ServerExited(exit_code, self.log())
            if time.monotonic() > deadline:
                raise TimeoutError(f"no healthy server within {timeout_s} s:\n{self.log()}")
            time.sleep(POLL_S)
        self.processes()

    def health(self) -> int | None:
        """The status of `/health`; None when nobody answers."""
        try:
            return self.get("/health")[0]
        except (OSError, http.client.HTTPException):
            return None

    def get(self, path: str, timeout_s: float = 10.0) -> tuple[int, str]:
        """Status and body of one GET. Raises OSError when the server does not answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def log(self) -> str:
        """Everything the server has written to standard output and error so far."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def processes(self) -> list[psutil.Process]:
        """The server and its living descendants. All that were ever seen are remembered."""
        try:
            root = psutil.Process(self.pid)
            found = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            found = []
        self._seen.update({process.pid: process for process in found})
        return found

    def survivors(self) -> list[psutil.Process]:
        """Processes of this server, ever seen, that still run."""
        return [process for process in self._seen.values() if _runs(process)]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """The exit code. Raises subprocess.TimeoutExpired when the process still runs by then."""
        return self._running().wait(timeout_s)

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, then the exit code; SIGKILL to what is left after `timeout_s`."""
        self.processes()
        if self._running().poll() is None:
            self.send(signal.SIGTERM)
        try:
            return self.wait(timeout_s)
        finally:
            self.clean_up()

    def clean_up(self) -> None:
        """Kill whatever of this server still runs. Safe to call at any time."""
        if self._process is None:
            return
        self.processes()
        for process in self.survivors():
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                process.kill()
        self._process.wait(10.0)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
