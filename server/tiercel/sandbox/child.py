"""A sandbox child, forked by a fork server that has prepared: answers one job at a time.

Limits of memory and reply size are kept here. Time is the pool's to watch: it kills.
"""

import resource
import socket

import msgspec

from tiercel.child_process import end_with_parent
from tiercel.sandbox.errors import JobRefused
from tiercel.sandbox.jobs import Answer
from tiercel.sandbox.messages import (
    HEADER_BYTES,
    Answered,
    Broken,
    OutOfMemory,
    Refused,
    Reply,
    Start,
    TooLarge,
    encode,
    length_of,
)

DEFECT_CHARACTERS = 300
OUT_OF_MEMORY = encode(OutOfMemory())  # now, while there is memory


def serve(connection: socket.socket, parent: int, answer: Answer, start: Start) -> int:
    """Answer payloads to the end of the connection; returns the exit code."""
    end_with_parent(parent, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    while payload := receive(connection):
        try:
            connection.sendall(encode(_reply(answer, payload, start.reply_bytes)))
        except MemoryError:
            connection.sendall(OUT_OF_MEMORY)
            return 1
    return 0


def receive(connection: socket.socket) -> bytes:
    """The next message; empty at the end of the connection."""
    header = _read(connection, HEADER_BYTES)
    return _read(connection, length_of(header)) if header else b""


def _read(connection: socket.socket, size: int) -> bytes:
    """All of `size` bytes, or none at the end of the connection."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)


def broken(error: Exception) -> Broken:
    """An error that a job should not have raised."""
    return Broken(f"{type(error).__name__}: {error}"[:DEFECT_CHARACTERS])


def _reply(answer: Answer, payload: bytes, reply_bytes: int) -> Reply:
    try:
        value = msgspec.msgpack.encode(answer(msgspec.msgpack.decode(payload)))
    except JobRefused as error:
        return Refused(error.kind, str(error))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (one job's fault stays with that job)
        return broken(error)
    return TooLarge() if len(value) > reply_bytes else Answered(msgspec.Raw(value))
