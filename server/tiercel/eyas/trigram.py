"""A trigram model with interpolated modified Kneser-Ney smoothing: the yardstick beside eyas.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998): three
discounts per order, from the counts of counts; lower orders count contexts, not occurrences.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Context = tuple[int, ...]


@dataclass
class Order:
    """The counts of one order, and what each context's discounts leave for the order below."""

    counts: Counter[Context]
    totals: defaultdict[Context, int] = field(default_factory=lambda: defaultdict(int))
    set_aside: defaultdict[Context, float] = field(default_factory=lambda: defaultdict(float))
    discounts: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        self.discounts = discounts_of(self.counts)
        for gram, count in self.counts.items():
            self.totals[gram[:-1]] += count
            self.set_aside[gram[:-1]] += self.discount(count)

    def discount(self, count: int) -> float:
        """Return what is taken off a count: it differs for one, two, and three or more."""
        return self.discounts[min(count, 3) - 1]

    def probability(self, gram: Context, lower: float) -> float:
        """Interpolate with `lower`, the probability of the same token in the shorter context."""
        total = self.totals.get(gram[:-1], 0)
        if total == 0:
            return lower
        count = self.counts.get(gram, 0)
        kept = count - self.discount(count) if count else 0.0
        return (kept + self.set_aside[gram[:-1]] * lower) / total


def discounts_of(counts: Mapping[Context, int]) -> tuple[float, float, float]:
    """Estimate the three discounts from how many n-grams were seen 1, 2, 3 and 4 times."""
    once, twice, thrice, four_times = (max(1, n) for n in count_of_counts(counts))
    share = once / (once + 2 * twice)
    raw = (
        1 - 2 * share * twice / once,
        2 - 3 * share * thrice / twice,
        3 - 4 * share * four_times / thrice,
    )
    one, two, three = (min(max(value, 0.0), index + 1.0) for index, value in enumerate(raw))
    return one, two, three


def count_of_counts(counts: Mapping[Context, int]) -> tuple[int, int, int, int]:
    """Return how many n-grams were seen exactly 1, 2, 3 and 4 times."""
    seen = Counter(count for count in counts.values() if count <= 4)
    return seen[1], seen[2], seen[3], seen[4]


class Trigram:
    """Next-token probabilities from the two tokens before; no token's probability is zero."""

    def __init__(self, stream: Sequence[int], vocabulary_tokens: int) -> None:
        self.vocabulary_tokens = vocabulary_tokens
        trigrams: Counter[Context] = Counter(zip(stream, stream[1:], stream[2:], strict=False))
        # A lower order's count is the number of different tokens that came before.
        bigrams: Counter[Context] = Counter(gram[1:] for gram in trigrams)
        unigrams: Counter[Context] = Counter(gram[1:] for gram in bigrams)
        self.orders = tuple(Order(counts) for counts in (unigrams, bigrams, trigrams))

    def probability(self, context: Sequence[int], token: int) -> float:
        """Return p(token | last two tokens of `context`); shorter contexts use lower orders."""
        known = min(len(context), 2)
        probability = 1 / self.vocabulary_tokens
        for length in range(known + 1):
            gram = (*context[len(context) - length :], token)
            probability = self.orders[length].probability(gram, probability)
        return probability

    def mean_loss(self, stream: Sequence[int]) -> float:
        """Mean loss in nats over every token of `stream` but the first, as for the model itself."""
        total = 0.0
        for index in range(1, len(stream)):
            total -= math.log(self.probability(stream[max(0, index - 2) : index], stream[index]))
        return total / (len(stream) - 1)
