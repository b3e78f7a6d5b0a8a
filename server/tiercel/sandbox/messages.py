"""What goes through the sandbox's sockets: length, then msgpack. Never pickle.

Pool to fork server: one Start, then records of RECORD_BYTES; one that asks for a child brings the
child's socket along. Fork server to pool: Ready, Forked and Ended, or why not. Pool to child:
payloads. Child to pool: one answer for each.
"""

import struct
from typing import Any

import msgspec

HEADER_BYTES = 4
_RECORD = struct.Struct("!q")
RECORD_BYTES = _RECORD.size
FORK = _RECORD.pack(0)  # any other record is the id of a child that has to end


class Start(msgspec.Struct, frozen=True):
    """The first message to a fork server: what its children are for and what they may use."""

    job: str
    context: Any
    memory_bytes: int
    reply_bytes: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The job has prepared; children can be had."""


class Forked(msgspec.Struct, frozen=True, tag=True):
    """There is one more child. In the order in which they were asked for."""

    pid: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A child has ended and is reaped: `code` is its exit code, or minus the signal's number."""

    pid: int
    code: int


class Answered(msgspec.Struct, frozen=True, tag=True):
    """The job's answer, still encoded."""

    value: msgspec.Raw


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The job said no."""

    kind: str
    message: str


class TooLarge(msgspec.Struct, frozen=True, tag=True):
    """The answer is larger than `Start.reply_bytes`."""


class OutOfMemory(msgspec.Struct, frozen=True, tag=True):
    """The memory limit was met; the process ends after this message."""


class Broken(msgspec.Struct, frozen=True, tag=True):
    """The job or its preparation raised something that it should not."""

    message: str


Reply = Answered | Refused | TooLarge | OutOfMemory | Broken
Report = Ready | OutOfMemory | Broken | Forked | Ended


def encode(message: msgspec.Struct) -> bytes:
    """A message behind its length."""
    return framed(msgspec.msgpack.encode(message))


def framed(message: bytes) -> bytes:
    """Bytes behind their length."""
    return len(message).to_bytes(HEADER_BYTES, "big") + message


def length_of(header: bytes) -> int:
    """The number of bytes that follow a header."""
    return int.from_bytes(header, "big")


def kill_record(pid: int) -> bytes:
    """The record that ends a child."""
    return _RECORD.pack(pid)


def read_record(record: bytes) -> int:
    """The child to be ended; 0 for FORK."""
    (pid,) = _RECORD.unpack(record)
    return int(pid)
