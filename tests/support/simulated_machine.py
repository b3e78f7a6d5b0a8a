"""How long the steps of a machine take, without the machine: a cost model with noise."""

import random
from dataclasses import dataclass, field

PROMPT = 1500


@dataclass
class Machine:
    """Seconds of a step: decoding, plus a cost per prefill token that grows with the context."""

    decode_s: float = 0.020
    prompt_s: float = 1.6  # PROMPT tokens alone
    attention: float = 0.4  # the part of prompt_s that attention would take at full context
    noise: float = 0.0  # relative standard deviation
    slow: float = 0.0  # how often a step takes five times as long
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def seconds(self, decoding: bool, tokens: int, context: float) -> float:
        """Without noise."""
        grows = self.attention * self.prompt_s / PROMPT**2
        flat = self.prompt_s / PROMPT - grows * PROMPT / 2
        return self.decode_s * decoding + tokens * (flat + grows * context)

    def measured(self, decoding: bool, tokens: int, context: float) -> float:
        """As a worker would report it."""
        factor = max(0.7, self.dice.gauss(1.0, self.noise))
        if self.dice.random() < self.slow:
            factor *= 5
        return self.seconds(decoding, tokens, context) * factor
