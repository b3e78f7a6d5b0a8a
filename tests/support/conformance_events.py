"""Server-sent events taken apart byte by byte, as the contract (1.3) writes them."""

import json
from dataclasses import dataclass
from typing import Any

DONE = b"[DONE]"
COMMENT = b":"


@dataclass(frozen=True)
class Events:
    """One whole stream. `data` are the documents in order, without comments and `[DONE]`."""

    data: list[dict[str, Any]]
    comments: int
    done: bool

    @property
    def text(self) -> str:
        """The texts of native events, joined."""
        return "".join(event["token"]["text"] for event in self.data)

    @property
    def ids(self) -> list[int]:
        """The token ids of native events."""
        return [event["token"]["id"] for event in self.data]

    @property
    def content(self) -> str:
        """The contents of chat chunks, joined."""
        deltas = [choice["delta"] for event in self.data for choice in event["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)


def read_events(content: bytes) -> Events:
    """Fails unless every event is `data: `, compact JSON or `[DONE]`, and an empty line."""
    *blocks, rest = content.split(b"\n\n")
    assert rest == b"", rest
    data: list[dict[str, Any]] = []
    comments, done = 0, False
    for block in blocks:
        assert not done, f"something follows [DONE]: {block!r}"
        if block == COMMENT:
            comments += 1
            continue
        assert block.startswith(b"data: "), block
        payload = block.removeprefix(b"data: ")
        assert b"\n" not in payload and b"\r" not in payload, block
        if payload == DONE:
            done = True
            continue
        assert payload[:1] == b"{", block
        document = json.loads(payload)
        assert len(payload) <= len(_compact(document)), f"not compact: {payload!r}"
        data.append(document)
    return Events(data, comments, done)


def _compact(document: dict[str, Any]) -> bytes:
    """At least as long as the compact form: escapes are the sender's choice, floats are 64-bit."""
    return json.dumps(document, separators=(",", ":")).encode()
