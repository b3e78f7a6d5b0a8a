"""The engine process: `python -P -m tiercel.engine.process DIRECTORY PARENT_PID`.

Reads its options from DIRECTORY, talks over two ipc sockets there, and ends with its parent. Knows
nothing of HTTP.
"""

import gc
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from tiercel.child_process import end_with_parent
from tiercel.engine.paths import from_engine, options_file, to_engine
from tiercel.errors import EngineDied, StartupError
from tiercel.model.config import load_spec
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
from tiercel.wire.ranks import Loss

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0

Silence = Callable[[], list[float]]  # see assemble, which is imported late


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


class LastWords:
    """A connection for a thread that ends the process: made before, as the socket's file goes."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._outbox = SocketOutbox(self._context, address)

    def __call__(self, loss: Loss) -> None:
        """Why the group is given up. Returns when it is sent, or after two seconds."""
        self._outbox.send(EngineFailed(loss.reason, loss.exit_code))
        self._outbox.close()
        self._context.term()


class HeartbeatThread(threading.Thread):
    """Says every second that the process lives, on a socket of its own: one thread, one socket.

    Starts before the model loads; knows how long a step takes once there is a `clock` for it.
    """

    def __init__(
        self, parent: int, context: "zmq.Context[zmq.Socket[bytes]]", address: str
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._parent, self._context, self._address = parent, context, address
        self._stop_event = threading.Event()
        self.step_running_s: Callable[[], float] = lambda: 0.0
        self.ranks_silent_s: Silence = list

    def run(self) -> None:
        outbox = SocketOutbox(self._context, self._address)
        while not self._stop_event.wait(HEARTBEAT_S):
            if os.getppid() != self._parent:
                os._exit(EngineDied.exit_code)
            outbox.send(Heartbeat(self.step_running_s(), self.ranks_silent_s()))
        outbox.close()

    def end(self) -> None:
        """Stop and give the socket back."""
        self._stop_event.set()
        self.join(timeout=2 * HEARTBEAT_S)


def main(directory: Path, parent: int) -> int:
    """Run one engine to its end; returns the exit code."""
    end_with_parent(parent, EngineDied.exit_code)
    options = msgspec.json.decode(options_file(directory).read_bytes(), type=EngineOptions)
    rank = None if options.num_shard == 1 and options.world is None else 0
    configure_logging(options.log_level, options.log_json, rank)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    outbox = SocketOutbox(context, from_engine(directory))
    inbox = SocketInbox(context, to_engine(directory))
    heartbeat = HeartbeatThread(parent, context, from_engine(directory))
    heartbeat.start()
    try:
        return _serve(options, inbox, outbox, heartbeat, LastWords(from_engine(directory)))
    except StartupError as error:
        outbox.send(EngineFailed(str(error), error.exit_code))
        return error.exit_code
    except Exception as error:
        logger.critical("the engine failed", exc_info=True)
        outbox.send(EngineFailed(f"{type(error).__name__}: {error}", EngineDied.exit_code))
        return EngineDied.exit_code
    finally:
        heartbeat.end()
        inbox.close()
        outbox.close()
        context.term()


def _serve(
    options: EngineOptions,
    inbox: SocketInbox,
    outbox: SocketOutbox,
    heartbeat: HeartbeatThread,
    last_words: LastWords,
) -> int:
    # The worker reads it again. Here it is refused before torch, which takes seconds to import.
    load_spec(
        Path(options.model_path),
        rope_scaling=options.rope_scaling,
        rope_factor=options.rope_factor,
    )
    # Here, because by now the process already ends with its parent.
    from tiercel.engine.assemble import assemble

    def watch(silence: Silence) -> None:
        heartbeat.ranks_silent_s = silence

    core, ready = assemble(
        options,
        outbox.send,
        lambda done, total: outbox.send(LoadProgress(done, total)),
        last_words,
        watch,
    )
    gc.collect()
    gc.freeze()  # as in server.py; here a full collection while it loads takes up to 82 ms
    outbox.send(ready)
    heartbeat.step_running_s = core.step_running_s
    core.run(inbox)
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]))
    # Skips the teardown of threads and libraries that may hang on a sick device.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
