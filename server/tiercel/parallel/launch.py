"""The other ranks of this machine, as children of the first."""

import os
import signal
import socket
import subprocess
import sys
import time

import msgspec

from tiercel.errors import ConfigError, RankLost
from tiercel.wire.options import LOCALHOST, EngineOptions, World
from tiercel.wire.ranks import Loss

SAY_S = 1.5  # what a rank has said of its end is heard within this time
EXIT_S = 5.0  # what a rank may take to end once it was told to


def local_world(size: int, port: int | None = None) -> tuple[World, socket.socket]:
    """Rank 0 of `size` ranks on this machine, and a socket where they meet: at a free port if not
    `port`, and of the loopback, since the store asks nobody for a key.

    Raises ConfigError if the port is taken.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOCALHOST, port or 0))
        listener.listen(2 * size)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--master-port {port}: the ranks cannot meet there ({error.strerror}); leave it "
            "out for a free port, or give another"
        ) from error
    found: int = listener.getsockname()[1]
    return World(0, size, 0, size, LOCALHOST, found), listener


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

    def ended(self) -> Loss | None:
        """The first rank that is gone, and how; a little later if it may yet say why itself."""
        for rank, child in self._children.items():
            code = child.poll()
            if code is None:
                continue
            place = f"the process of rank {rank} ended"
            if code < 0:
                name = signal.Signals(-code).name
                return Loss(f"{place} by signal {name}", RankLost.exit_code)
            if time.monotonic() - self._seen.setdefault(rank, time.monotonic()) > SAY_S:
                reason = f"{place} with exit code {code}; its lines in the log say why"
                return Loss(reason, code or RankLost.exit_code)
        return None

    def stop(self) -> None:
        """Wait for those that were told to end, then end the rest."""
        for child in self._children.values():
            try:
                child.wait(EXIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
