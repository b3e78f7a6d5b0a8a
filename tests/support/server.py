"""Real servers for end-to-end tests, in an environment the machine's own settings cannot reach."""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

import tiercel
from tiercel.bench.server import ServerProcess

SOURCE_FOLDER = Path(tiercel.__file__).parents[1]
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
ENGINE_MODULE = "tiercel.engine.process"


def make_server(
    folder: Path,
    model: Path | str | None = None,
    *flags: str,
    variables: dict[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> ServerProcess:
    """A server that has not been started. `folder` takes its log; `model` None is eyas.

    It computes on one thread: on a busy machine, threads that wait for each other in every small
    operation make it many times slower, and these tests are about what it does, not how fast.
    """
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment |= {"PYTHONPATH": str(SOURCE_FOLDER), "HF_HUB_OFFLINE": "1"}
    return ServerProcess(
        folder / "server.log",
        model,
        ("--threads", "1", *flags),
        environment=environment | (variables or {}),
        wrapper=wrapper,
    )


def engine_of(server: ServerProcess) -> psutil.Process:
    """The engine process of a running server."""
    for process in server.processes():
        if ENGINE_MODULE in process.cmdline():
            return process
    raise AssertionError("the server has no engine process")


def startup_errors(log: str) -> list[str]:
    """The lines with which the command reports that it cannot start."""
    return [line for line in log.splitlines() if line.startswith("tiercel: error: ")]
