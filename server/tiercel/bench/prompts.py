"""Prompts that no cache has seen: random words, cut by the server to an exact number of tokens."""

import random
from collections.abc import Iterator
from typing import Any

from tiercel.bench.client import Client

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zu")


class PromptMaker:
    """Makes payloads for the native routes. One seed gives one series of prompts."""

    def __init__(self, tokens_per_word: float, seed: int) -> None:
        self._tokens_per_word = tokens_per_word
        self._random = random.Random(seed)

    @classmethod
    async def for_server(cls, client: Client, seed: int) -> "PromptMaker":
        """Asks `/tokenize` how many tokens such words take."""
        maker = cls(1.0, seed)
        words = [maker._word() for _ in range(400)]
        reply = await client.post("/tokenize", {"inputs": " ".join(words)})
        return cls(len(reply.json()) / len(words), seed)

    def text(self, tokens: int) -> str:
        """At least `tokens` tokens of text, a little more on average."""
        words = int(tokens / self._tokens_per_word * 1.15) + 8
        return " ".join(self._word() for _ in range(words))

    def payload(self, tokens: int, max_new_tokens: int, **parameters: Any) -> dict[str, Any]:
        """A greedy request of exactly `tokens` input tokens: the server cuts the rest off."""
        limits = {"truncate": tokens, "max_new_tokens": max_new_tokens}
        return {"inputs": self.text(tokens), "parameters": limits | parameters}

    def payloads(self, tokens: int, max_new_tokens: int) -> Iterator[dict[str, Any]]:
        while True:
            yield self.payload(tokens, max_new_tokens)

    def _word(self) -> str:
        return "".join(self._random.choices(_SYLLABLES, k=self._random.randint(1, 4)))
