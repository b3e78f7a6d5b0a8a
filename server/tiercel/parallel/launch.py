"""The other ranks of this machine, as children of the first."""

import os
import signal
import socket
import subprocess
import sys
import time

import msgspec

from tiercel.errors import ConfigError
from tiercel.wire.options import LOCALHOST, EngineOptions, World

SAY_S = 1.5  # what a rank has said of its end is heard within this time
EXIT_S = 5.0  # what a rank may take to end once it was told to


def local_world(size: int, port: int | None = None) -> World:
    """Rank 0 of `size` ranks on this machine, and where they meet: at a free port if not `port`.

    Raises ConfigError if the port is taken.
    """
    with socket.socket() as probe:
        try:
            probe.bind((LOCALHOST, port or 0))
        except OSError as error:
            raise ConfigError(
                f"--master-port {port}: the ranks cannot meet there ({error.strerror}); leave it "
                "out for a free port, or give another"
            ) from error
        found: int = probe.getsockname()[1]
    return World(0, size, 0, size, LOCALHOST, found)


def start_rank(
    options: EngineOptions,
    module: str = "tiercel.worker.follower",
    environment: dict[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """A process of one rank, a child of this one; `options` reach it through a pipe.

    `environment`: ours if it is None.
    """
    reader, writer = os.pipe()  # its buffer is larger than any options
    try:
        os.write(writer, msgspec.json.encode(options))
        os.close(writer)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(os.getpid())], stdin=reader, env=environment
        )
    finally:
        os.close(reader)


class LocalRanks:
    """Processes of ranks 1 to N - 1. They end with this one, whatever ends it."""

    def __init__(self, module: str = "tiercel.worker.follower") -> None:
        """`module`: what they run."""
        self._module = module
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._seen: dict[int, float] = {}  # when a rank was first found to have ended

    def start(self, options: EngineOptions, world: World) -> None:
        """One process per rank."""
        for rank in range(1, world.size):
            theirs = msgspec.structs.replace(world, rank=rank, local_rank=rank)
            told = msgspec.structs.replace(options, world=theirs)
            self._children[rank] = start_rank(told, self._module)

    def ended(self) -> str | None:
        """The first rank that is gone, and how; a little later if it may yet say why itself."""
        for rank, child in self._children.items():
            code = child.poll()
            if code is None:
                continue
            if code < 0:
                return f"the process of rank {rank} ended by signal {signal.Signals(-code).name}"
            if time.monotonic() - self._seen.setdefault(rank, time.monotonic()) > SAY_S:
                return f"the process of rank {rank} ended with exit code {code}"
        return None

    def stop(self) -> None:
        """Wait for those that were told to end, then end the rest."""
        for child in self._children.values():
            try:
                child.wait(EXIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
