"""The pool's side of the processes: a fork server, and the children it forks.

Starts, exchanges, kills. Decides nothing about when.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping

import msgspec
import psutil

from tiercel.sandbox.errors import (
    JobRefused,
    SandboxCrashed,
    SandboxError,
    SandboxOutOfMemory,
    SandboxReplyTooLarge,
)
from tiercel.sandbox.messages import (
    FORK,
    HEADER_BYTES,
    Answered,
    Broken,
    Ended,
    Forked,
    OutOfMemory,
    Ready,
    Refused,
    Reply,
    Report,
    Start,
    TooLarge,
    encode,
    framed,
    kill_record,
    length_of,
)

START_S = 20.0  # for a fork server to become ready, on a machine that has much else to do
KILL_S = 5.0
REAP_S = 0.01
MOST_NICE = 19
REPORT_BYTES = 4_096
REPLY_MARGIN_BYTES = 1_024  # what a reply has around its value

_Birth = tuple[int, "asyncio.Future[int]"]  # a child's id, and its exit code when it has ended
_decode_reply = msgspec.msgpack.Decoder[Reply](Reply).decode
_decode_report = msgspec.msgpack.Decoder[Report](Report).decode


async def _receive(reader: asyncio.StreamReader, limit_bytes: int) -> bytes:
    """The next message. Raises SandboxReplyTooLarge, IncompleteReadError, ConnectionError."""
    length = length_of(await reader.readexactly(HEADER_BYTES))
    if length > limit_bytes:
        raise SandboxReplyTooLarge("the answer is too large")
    return await reader.readexactly(length)


class ChildProcess:
    """One child of a fork server. Made by `ForkServer.fork`; `kill` it in the end."""

    def __init__(
        self,
        server: "ForkServer",
        born: "_Birth",
        process: psutil.Process,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.pid, self._ended = born
        self._waits = True  # for a payload
        self._process = process
        self._spent_s = 0.0
        self.demoted = False
        self._server = server
        self._reader, self._writer = streams

    @property
    def usable(self) -> bool:
        """Whether it can take a payload."""
        return self._waits and not self._ended.done()

    @property
    def spent_s(self) -> float:
        """The processor time that it has taken in its life, to 10 ms."""
        with contextlib.suppress(psutil.Error):  # it has ended
            times = self._process.cpu_times()
            self._spent_s = times.user + times.system
        return self._spent_s

    def demote(self, nice: int) -> None:
        """Be so much nicer than this process. Cannot be undone without privileges."""
        self.demoted = True
        with contextlib.suppress(psutil.Error):  # it has ended
            self._process.nice(min(psutil.Process().nice() + nice, MOST_NICE))

    async def run(self, payload: bytes) -> msgspec.Raw:
        """One job's answer. Raises SandboxError; `usable` tells whether another job may follow."""
        self._waits = False
        try:
            self._writer.write(framed(payload))
            await self._writer.drain()
            limit = self._server.start.reply_bytes + REPLY_MARGIN_BYTES
            reply = _decode_reply(await _receive(self._reader, limit))
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await asyncio.shield(self._ended)  # it is about to come
            raise SandboxCrashed(f"its process ended {_ending(code)}") from None
        except msgspec.DecodeError as error:
            raise SandboxCrashed("its process wrote what is no answer") from error
        if isinstance(reply, OutOfMemory):
            raise _error(reply)
        self._waits = True
        if not isinstance(reply, Answered):
            raise _error(reply)
        return reply.value

    async def kill(self) -> None:
        """End the process now, if it has not ended."""
        self._waits = False
        self._writer.transport.abort()
        self._server.kill(self.pid)
        await asyncio.wait((self._ended,), timeout=KILL_S)
        if not self._ended.done():
            self._server.alive = False  # it does not listen: its lane ends it, and so its children


class ForkServer:
    """One running fork server. Made by `started`; `close` it in the end."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        ours: socket.socket,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        start: Start,
    ) -> None:
        self.start = start
        self.alive = True
        self._process = process
        self._records = ours
        self._reader, self._writer = streams
        self._asked: deque[asyncio.Future[_Birth]] = deque()
        self._ends: dict[int, asyncio.Future[int]] = {}  # of children that have not ended
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def started(cls, start: Start, environment: Mapping[str, str] | None) -> "ForkServer":
        """A server that has prepared its job. Raises SandboxError when it cannot.

        Its life is bound to the calling thread: see end_with_parent.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = _popen(theirs, environment)
            except OSError as error:
                ours.close()
                raise SandboxCrashed(f"there is no process to be had: {error}") from None
        ours.setblocking(False)
        try:
            streams = await asyncio.open_unix_connection(sock=ours.dup())
        except asyncio.CancelledError:
            ours.close()
            process.kill()
            process.wait()
            raise
        server = cls(process, ours, streams, start)
        try:
            async with asyncio.timeout(START_S):
                await server._prepared()
        except TimeoutError:
            await server.close()
            raise SandboxCrashed(f"its process is not ready after {START_S:g} s") from None
        except (SandboxError, asyncio.CancelledError):
            await server.close()
            raise
        server._reading = asyncio.ensure_future(server._read())
        return server

    async def _prepared(self) -> None:
        try:
            self._writer.write(encode(self.start))
            await self._writer.drain()
            report = _decode_report(await _receive(self._reader, REPORT_BYTES))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise SandboxCrashed("its process ended while it prepared") from None
        if not isinstance(report, Ready):
            raise _error(report)

    async def fork(self) -> ChildProcess:
        """One more child. Raises SandboxError when the server is gone or has none to give."""
        if not self.alive:
            raise _gone()
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)  # a child that was forked reads the end and exits
            ours.setblocking(False)
            with theirs:
                try:
                    socket.send_fds(self._records, [FORK], [theirs.fileno()])
                except OSError:
                    raise _gone() from None
            asked: asyncio.Future[_Birth] = asyncio.get_running_loop().create_future()
            asked.add_done_callback(_seen)
            self._asked.append(asked)
            try:
                async with asyncio.timeout(KILL_S):
                    born = await asyncio.shield(asked)
            except TimeoutError:
                self.alive = False  # it does not listen: its lane ends it
                raise _gone() from None
            try:
                process = psutil.Process(born[0])
            except psutil.NoSuchProcess:
                raise SandboxCrashed("its process ended as it began") from None
            streams = await asyncio.open_unix_connection(sock=ours)
            child = ChildProcess(self, born, process, streams)
            undo.pop_all()
        return child

    def kill(self, pid: int) -> None:
        """End a child; the server knows whether the number is still that child's."""
        if self.alive and pid in self._ends:
            with contextlib.suppress(OSError):  # the server is gone, and its children with it
                self._records.send(kill_record(pid))

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                report = _decode_report(await _receive(self._reader, REPORT_BYTES))
                if isinstance(report, Forked):
                    ended = self._ends[report.pid] = loop.create_future()
                    self._asked.popleft().set_result((report.pid, ended))
                elif isinstance(report, Broken):
                    self._asked.popleft().set_exception(_error(report))
                elif isinstance(report, Ended):
                    self._ends.pop(report.pid).set_result(report.code)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.alive = False
            for asked in self._asked:
                asked.set_exception(_gone())
            for ended in self._ends.values():
                ended.set_result(-signal.SIGKILL)
            self._asked.clear()
            self._ends.clear()

    async def close(self) -> None:
        """End it and its children, and leave no zombie."""
        self.alive = False
        self._writer.transport.abort()
        with contextlib.suppress(OSError):  # it has ended already
            self._records.shutdown(socket.SHUT_RDWR)  # it ends its children, reaps them and exits
        self._records.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (KILL_S if self._reading is not None else 0.0)
        try:
            while self._process.poll() is None:
                if loop.time() > deadline:
                    self._process.kill()
                await asyncio.sleep(REAP_S)
        except asyncio.CancelledError:
            self._process.kill()
            self._process.wait()  # milliseconds, and nobody else would
            raise


def _popen(theirs: socket.socket, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tiercel.sandbox.fork_server", str(os.getpid())],
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        env=environment,
        # Ctrl-C is not for it. Not a session of its own: some schedulers weigh sessions against
        # each other and would not see how nice the children are.
        process_group=0,
    )


def _ending(code: int) -> str:
    return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _seen(future: "asyncio.Future[_Birth]") -> None:
    """Whoever asked may have left: then nobody else looks at the error."""
    if not future.cancelled():
        future.exception()


def _gone() -> SandboxCrashed:
    return SandboxCrashed("its fork server has ended")


def _error(message: Reply | Report) -> SandboxError:
    match message:
        case Refused(kind, text):
            return JobRefused(kind, text)
        case TooLarge():
            return SandboxReplyTooLarge("the answer is too large")
        case OutOfMemory():
            return SandboxOutOfMemory("it needs more memory than it may have")
        case Broken(text):
            return SandboxCrashed(text)
    return SandboxCrashed(f"its process answered out of turn with {type(message).__name__}")
