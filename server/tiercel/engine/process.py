"""The engine process: `python -m tiercel.engine.process DIRECTORY`.

Reads its options from DIRECTORY, talks over two ipc sockets there, and ends with its parent. Knows
nothing of HTTP.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import msgspec
import zmq

from tiercel.engine.assemble import assemble
from tiercel.engine.core import EngineBroken, EngineCore
from tiercel.engine.paths import from_engine, options_file, to_engine
from tiercel.errors import EngineDied, StartupError
from tiercel.telemetry.logs import configure_logging
from tiercel.wire.messages import (
    EngineFailed,
    FromEngine,
    Heartbeat,
    LoadProgress,
    ToEngine,
    decode_to_engine,
    encode,
)
from tiercel.wire.options import EngineOptions

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
_PR_SET_PDEATHSIG = 1


class SocketInbox:
    """Messages to the engine from a zmq socket."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self._socket = context.socket(zmq.PULL)
        self._socket.connect(address)

    def receive(self, wait_s: float) -> list[ToEngine]:
        """See core.Inbox."""
        messages: list[ToEngine] = []
        if wait_s > 0:
            self._socket.poll(int(wait_s * 1000))
        while True:
            try:
                messages.append(decode_to_engine(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return messages

    def close(self) -> None:
        """Nobody reads what is still on its way."""
        self._socket.close(linger=0)


class SocketOutbox:
    """Messages from the engine. Blocks when the API process is far behind: that is the brake."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.connect(address)

    def send(self, message: FromEngine) -> None:
        self._socket.send(encode(message))

    def close(self) -> None:
        """What was sent still leaves, within two seconds of the context's end."""
        self._socket.close(linger=2000)


def main(directory: Path) -> int:
    """Run one engine to its end; returns the exit code."""
    _end_with_parent()
    options = msgspec.json.decode(options_file(directory).read_bytes(), type=EngineOptions)
    configure_logging(options.log_level, options.log_json)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    outbox = SocketOutbox(context, from_engine(directory))
    try:
        return _serve(options, directory, context, outbox)
    except StartupError as error:
        outbox.send(EngineFailed(str(error), error.exit_code))
        return error.exit_code
    except EngineBroken as error:
        logger.critical("the engine gives up: %s", error)
        outbox.send(EngineFailed(str(error), EngineDied.exit_code))
        return EngineDied.exit_code
    except Exception as error:
        logger.critical("the engine failed", exc_info=True)
        outbox.send(EngineFailed(f"{type(error).__name__}: {error}", EngineDied.exit_code))
        return EngineDied.exit_code
    finally:
        outbox.close()
        context.term()


def _serve(
    options: EngineOptions,
    directory: Path,
    context: "zmq.Context[zmq.Socket[bytes]]",
    outbox: SocketOutbox,
) -> int:
    inbox = SocketInbox(context, to_engine(directory))
    try:
        core, ready = assemble(
            options, outbox.send, lambda done, total: outbox.send(LoadProgress(done, total))
        )
        outbox.send(ready)
        heartbeat = HeartbeatThread(core, context, from_engine(directory))
        heartbeat.start()
        try:
            core.run(inbox)
        finally:
            heartbeat.end()
    finally:
        inbox.close()
    return 0


class HeartbeatThread(threading.Thread):
    """Says every second that the process lives, on a socket of its own: one thread, one socket."""

    def __init__(
        self, core: EngineCore, context: "zmq.Context[zmq.Socket[bytes]]", address: str
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._core, self._context, self._address = core, context, address
        self._stop_event = threading.Event()

    def run(self) -> None:
        outbox = SocketOutbox(self._context, self._address)
        parent = os.getppid()
        while not self._stop_event.wait(HEARTBEAT_S):
            if os.getppid() != parent:
                os._exit(EngineDied.exit_code)
            started = self._core.step_started_s
            outbox.send(Heartbeat(self._core.now() - started if started is not None else 0.0))
        outbox.close()

    def end(self) -> None:
        """Stop and give the socket back."""
        self._stop_event.set()
        self.join(timeout=2 * HEARTBEAT_S)


def _end_with_parent() -> None:
    """Ctrl-C and SIGTERM are the parent's to handle; its death is ours as well (Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    # Skips the teardown of threads and libraries that may hang on a sick device.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
