"""Byte-level BPE's alphabet: how 256 bytes are written as printable characters, and back.

The mapping is GPT-2's (A. Radford et al., 2019): printable Latin-1 stands for itself, the other
bytes take the code points from 256 on, in order.
"""

from collections.abc import Container, Mapping
from typing import Any


def _alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


ALPHABET = _alphabet()
NEVER_IN_TEXT = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})  # UTF-8 has no such bytes
_TABLE = str.maketrans({char: chr(byte) for char, byte in ALPHABET.items()})


def token_bytes(token: str) -> bytes:
    """The bytes a token stands for; one with any character outside the alphabet is plain text."""
    if ALPHABET.keys() >= set(token):
        return token.translate(_TABLE).encode("latin-1")
    return token.encode("utf-8")


def lost_bytes(vocabulary: Container[str]) -> list[int]:
    """The bytes of UTF-8 text that no token stands for: a prompt is read as if without them."""
    needed = (char for char, byte in ALPHABET.items() if byte not in NEVER_IN_TEXT)
    return sorted(ALPHABET[char] for char in needed if char not in vocabulary)


def is_byte_level(decoder: Mapping[str, Any]) -> bool:
    """Whether the `decoder` of a tokenizer.json maps tokens to bytes and does nothing else."""
    if decoder.get("type") == "Sequence":
        steps = decoder.get("decoders")
        return isinstance(steps, list) and len(steps) == 1 and is_byte_level(steps[0])
    return decoder.get("type") == "ByteLevel"
