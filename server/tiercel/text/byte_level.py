"""Byte-level BPE's alphabet: how 256 bytes are written as printable characters, and back.

The mapping is GPT-2's (A. Radford et al., 2019): printable Latin-1 stands for itself, the other
bytes take the code points from 256 on, in order.
"""

from collections.abc import Mapping
from typing import Any


def _alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


ALPHABET = _alphabet()
_TABLE = str.maketrans({char: chr(byte) for char, byte in ALPHABET.items()})


def token_bytes(token: str) -> bytes:
    """The bytes a token stands for; one with any character outside the alphabet is plain text."""
    if ALPHABET.keys() >= set(token):
        return token.translate(_TABLE).encode("latin-1")
    return token.encode("utf-8")


def is_byte_level(decoder: Mapping[str, Any]) -> bool:
    """Whether the `decoder` of a tokenizer.json maps tokens to bytes and does nothing else."""
    if decoder.get("type") == "Sequence":
        steps = decoder.get("decoders")
        return isinstance(steps, list) and len(steps) == 1 and is_byte_level(steps[0])
    return decoder.get("type") == "ByteLevel"
