"""Messages from the first rank to the others that share its model, as tagged msgspec structs.

And what is said when a group ends.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from tiercel.wire.step import StepPlan


class Loss(NamedTuple):
    """Why a group ends, and the exit code of all its ranks."""

    reason: str
    exit_code: int


OnLost = Callable[[Loss], None]


class RunStep(msgspec.Struct, frozen=True, tag="run"):
    """Run this, as the first rank does. Grammars are left out: it alone draws."""

    plan: StepPlan


class Idle(msgspec.Struct, frozen=True, tag="idle"):
    """Nothing to do. Comes about once a second then, so that a lost connection is noticed."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """The group ends on purpose."""


RankMessage = RunStep | Idle | Stop

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[RankMessage] = msgspec.msgpack.Decoder(RankMessage)


def encode(message: RankMessage) -> bytes:
    """The message as MessagePack."""
    return _encoder.encode(message)


def decode(data: bytes) -> RankMessage:
    """Raises msgspec.ValidationError for anything but a message."""
    return _decoder.decode(data)
