"""A real Ray on this machine, and the application of deploy/ray on it, by their own commands.

Ray lives in an environment of its own, which `make ray` installs; nothing of it is imported here.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
import yaml

from support.server import KEPT_VARIABLES, SOURCE_FOLDER
from tiercel.bench.client import Client
from tiercel.bench.server import LOOPBACK, free_port

ROOT = Path(__file__).parents[2]
APPLICATION = ROOT / "deploy" / "ray"
RAY_BIN = ROOT / ".venv-ray" / "bin"
# Far more than anything takes here: a busy machine must not fail a test.
PATIENCE_S = 90.0
_READY = re.compile(
    r"Tiercel is ready: replica (\w+) is process (\d+), its server (\d+), at port (\d+)"
)
Found = TypeVar("Found")


@dataclass(frozen=True)
class Replica:
    """What a replica wrote when it was ready."""

    name: str
    pid: int  # of the actor
    server_pid: int
    port: int  # of the server

    def family(self) -> list[psutil.Process]:
        """The server and all of its processes, as they are now."""
        server = psutil.Process(self.server_pid)
        return [server, *server.children(recursive=True)]


def until(look: Callable[[], Found | None], what: str, timeout_s: float = PATIENCE_S) -> Found:
    """What `look` finds at last. Fails the test when that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
    return found


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them runs any more."""
    return not any(
        process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes
    )


class RayMachine:
    """`ray start --head` with eight made-up CPUs; a context manager that leaves nothing behind."""

    def __enter__(self) -> Self:
        # Ray's sockets lie in it, and their paths may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self.address = f"{LOOPBACK}:{free_port()}"
        command = [
            RAY_BIN / "ray", "start", "--head", "--block", "--num-cpus=8", "--num-gpus=0",
            f"--node-ip-address={LOOPBACK}", f"--port={self.address.rpartition(':')[2]}",
            "--object-store-memory=100000000", "--include-dashboard=false",
            "--disable-usage-stats", f"--temp-dir={self.folder}",
        ]  # fmt: skip
        self._log = self.folder / "start.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=_environment(), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        try:
            until(self._started, "ray start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        family = self.processes()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(15.0)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(10.0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """Everything of Ray and below it."""
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def logs(self, pattern: str) -> str:
        """Serve's logs by a pattern of their names, since Ray has started."""
        folder = self.folder / "session_latest" / "logs" / "serve"
        return "".join(path.read_text(errors="replace") for path in sorted(folder.glob(pattern)))

    def _started(self) -> bool:
        text = self._log.read_text(errors="replace")
        assert self._process.poll() is None, text
        return "will now block forever" in text


class Application:
    """`serve run` with a config file; a context manager that ends it as Ctrl-C does.

    The config is that of deploy/ray, with `arguments` instead of its own and a free port.
    """

    def __init__(self, machine: RayMachine, **arguments: Any) -> None:
        self._machine = machine
        self._known = {replica.name for replica in _ready(machine)}
        self.client = Client(LOOPBACK, free_port())
        config = yaml.safe_load((APPLICATION / "config.yaml").read_text())
        config["http_options"]["port"] = self.client.port
        flags = "--max-batch-total-tokens 16384"  # eight servers share this memory
        own = {"python": sys.executable, "flags": flags, "health_period_s": 2}
        config["applications"][0]["args"] = own | arguments
        self._config = machine.folder / f"{self.client.port}.yaml"
        self._config.write_text(yaml.safe_dump(config))
        self._log = machine.folder / f"{self.client.port}.log"

    def __enter__(self) -> Self:
        command = [RAY_BIN / "serve", "run", f"--address={self._machine.address}", self._config]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=_environment(), cwd=APPLICATION, stdout=log, stderr=subprocess.STDOUT
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()

    def said(self) -> str:
        """What `serve run` has written; Ray sends it what its actors write, too."""
        return self._log.read_text(errors="replace")

    def replicas(self, count: int) -> list[Replica]:
        """All that were ever ready, once there are `count`; the oldest first."""

        def look() -> list[Replica] | None:
            assert self._process.poll() is None, self.said()
            found = [item for item in _ready(self._machine) if item.name not in self._known]
            return found if len(found) >= count else None

        return until(look, f"{count} replicas")


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """`serve` with these arguments, where the application lies."""
    return subprocess.run(
        [RAY_BIN / "serve", *arguments], env=_environment(), cwd=APPLICATION, capture_output=True,
        text=True, timeout=PATIENCE_S,
    )  # fmt: skip


@contextlib.contextmanager
def ray_machine() -> Iterator[RayMachine]:
    """A machine with Ray, whose servers are all gone afterwards."""
    with RayMachine() as machine:
        yield machine
        left = machine.processes()
    until(lambda: gone(left), "an end of everything that Ray has started")


def _ready(machine: RayMachine) -> list[Replica]:
    lines = sorted(line for line in machine.logs("replica_*").splitlines() if _READY.search(line))
    found = (_READY.search(line) for line in lines)
    return [Replica(m[1], int(m[2]), int(m[3]), int(m[4])) for m in found if m is not None]


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    paths = [SOURCE_FOLDER, ROOT / "kernels"]
    return kept | {
        "PYTHONPATH": ":".join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
        "RAY_DEDUP_LOGS": "0",
        "NO_PROXY": LOOPBACK,
    }
