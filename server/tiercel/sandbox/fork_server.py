"""A lane's fork server: `python -P -m tiercel.sandbox.fork_server PARENT_PID`, stdin a socket.

Prepares a job once and forks a child for it whenever the pool asks: in milliseconds, where a new
process would spend its time importing. Runs no job itself. Ends with its parent, or when the socket
closes, and its children end with it.
"""

import contextlib
import gc
import os
import resource
import selectors
import signal
import socket
import sys
from types import FrameType

import msgspec

from tiercel.child_process import end_with_parent
from tiercel.sandbox.child import OUT_OF_MEMORY, broken, receive, serve
from tiercel.sandbox.jobs import Answer, prepare
from tiercel.sandbox.messages import (
    RECORD_BYTES,
    Ended,
    Forked,
    Ready,
    Start,
    encode,
    read_record,
)


def main(parent: int) -> int:
    """Serve one control connection to its end; returns the exit code. Returns in children too."""
    end_with_parent(parent, 0)
    control = _take_standard_input()
    order = receive(control)
    if not order:  # the pool has closed meanwhile
        return 0
    start = msgspec.msgpack.decode(order, type=Start)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Private writable memory: RSS is that and a few tens of MB of mapped files. Unlike address
    # space it leaves out what an allocator only reserves.
    resource.setrlimit(resource.RLIMIT_DATA, (start.memory_bytes, start.memory_bytes))
    try:
        answer = prepare(start.job, start.context)
    except MemoryError:
        _tell(control, OUT_OF_MEMORY)
        return 1
    except Exception as error:  # noqa: BLE001 (the top of the process: the pool reports it)
        _tell(control, encode(broken(error)))
        return 1
    gc.freeze()  # children share what is never collected
    _tell(control, encode(Ready()))
    return _ForkServer(control, answer, start).run()


def _take_standard_input() -> socket.socket:
    """The socket that came as standard input, which becomes empty: jobs cannot read from it."""
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return control


def _tell(control: socket.socket, message: bytes) -> None:
    """To the pool, which may have closed: then nobody asks, and the end of `control` says so."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.sendall(message)


class _ForkServer:
    def __init__(self, control: socket.socket, answer: Answer, start: Start) -> None:
        self._control = control
        self._answer = answer
        self._start = start
        self._children: set[int] = set()
        self._pid = os.getpid()
        self._wake, wake_up = socket.socketpair()
        for end in (self._wake, wake_up):
            end.setblocking(False)
        self._wake_up = wake_up
        signal.set_wakeup_fd(wake_up.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _noted)

    def run(self) -> int:
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wake in ready:
                    self._drain_wake()
                self._reap(os.WNOHANG)
                if self._control in ready:
                    record, sockets = self._record()
                    if not record:
                        return self._end()
                    pid = read_record(record)
                    if pid == 0:
                        connection = socket.socket(fileno=sockets[0])
                        if self._fork(connection):
                            return serve(connection, self._pid, self._answer, self._start)
                    elif pid in self._children:
                        os.kill(pid, signal.SIGKILL)

    def _fork(self, connection: socket.socket) -> bool:
        """Whether this is the child."""
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, or too little memory
            connection.close()
            _tell(self._control, encode(broken(error)))
            return False
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for ours in (self._control, self._wake, self._wake_up):
                ours.close()
            return True
        connection.close()
        self._children.add(pid)
        _tell(self._control, encode(Forked(pid)))
        return False

    def _record(self) -> tuple[bytes, list[int]]:
        """The next record and the descriptors that came with it; empty at the end."""
        record, sockets, _, _ = socket.recv_fds(self._control, RECORD_BYTES, 1)
        while record and len(record) < RECORD_BYTES:
            more = self._control.recv(RECORD_BYTES - len(record))
            if not more:
                return b"", sockets
            record += more
        return record, sockets

    def _reap(self, options: int) -> None:
        while self._children:
            pid, status = os.waitpid(-1, options)
            if pid == 0:
                return
            self._children.discard(pid)
            _tell(self._control, encode(Ended(pid, os.waitstatus_to_exitcode(status))))

    def _end(self) -> int:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        self._reap(0)
        return 0

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake.recv(64):
                pass


def _noted(number: int, frame: FrameType | None) -> None:
    """SIGCHLD needs a handler of its own to wake the selector."""


if __name__ == "__main__":
    code = main(int(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)  # without a teardown that an exhausted memory could break
