"""A `tiercel serve` process, and what it says: owned by an actor of Ray, and gone with it."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"
HEALTH_TIMEOUT_S = 5.0
_TIED = Path(__file__).with_name("tied.py")
_ERROR = "tiercel: error: "
# A launcher's variables would make the server one rank of several; only a replica sets them.
_RANK_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def free_port(host: str = LOOPBACK) -> int:
    """A port of `host` that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def claim_port(ports: Sequence[int]) -> tuple[int, socket.socket]:
    """The first of `ports` that is free on the loopback, and what keeps it from other replicas.

    The socket has to be kept: replicas that start together would else find the same port free.
    Its name goes with the process, however that ends. Raises OSError when all are taken.
    """
    for port in ports:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0tiercel-metrics-{port}")
            with socket.socket() as probe:
                # As the server does: a port that a stopped server had is free at once.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((LOOPBACK, port))
        except OSError:
            claim.close()
        else:
            return port, claim
    raise OSError(f"no free port for metrics on this node between {ports[0]} and {ports[-1]}")


def rank_variables(
    rank: int, size: int, address: str, port: int, *, on_gpu: bool
) -> dict[str, str]:
    """What makes a process one of several ranks; rank 0 opens `port` of `address`.

    Ray shows each rank its own GPU only, as number 0. Ranks on CPUs share memory with as many
    others as may be on their machine.
    """
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": "0" if on_gpu else str(rank),
        "LOCAL_WORLD_SIZE": "1" if on_gpu else str(size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


class TiercelProcess:
    """One running command `PYTHON -m tiercel serve ...`. Start it from a thread that lasts."""

    def __init__(
        self, python: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> None:
        """`variables` are added to this process's. Raises OSError if `python` cannot be run."""
        environment = {
            name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES
        }
        # The wrapper needs no packages: -I and -S start it in 20 ms.
        wrapper = [python, "-I", "-S", str(_TIED), str(os.getpid())]
        self._process = subprocess.Popen(
            [*wrapper, python, "-m", "tiercel", "serve", *arguments],
            env={**environment, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a Ctrl-C at Ray's terminal is for Ray, which drains
        )
        self.pid = self._process.pid
        self._last_line = "it said nothing"
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def ended(self) -> str | None:
        """How the process ended and the line that says why; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._reader.join(0.3)  # its children may have the pipe, and take a moment to end
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"process {self.pid} ended {how}: {self._last_line}"

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the process has ended, after `timeout_s` at most; without it, wait for that."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, timeout_s: float) -> None:
        """SIGTERM, which drains, then SIGKILL after `timeout_s`."""
        if self._process.poll() is None:
            self._process.terminate()
        if not self.wait(timeout_s):
            self._process.kill()
            self._process.wait()

    def _pass_on(self) -> None:
        """Ray collects what its actors write to standard error. An error's line is kept."""
        if self._process.stdout is None:
            return
        for line in self._process.stdout:
            sys.stderr.write(line)
            sys.stderr.flush()
            if line.strip() and not self._last_line.startswith(_ERROR):
                self._last_line = line.strip()


def health(port: int) -> int | None:
    """The status of `/health` of the server at a loopback port; None when it does not answer."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
