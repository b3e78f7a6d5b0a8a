"""Bucket bounds of the histograms. TGI's own, or few enough for a small Prometheus.

The contract's two token families have 100 bounds each and the batch family 1,024: about 1,500
series per server. `lean` keeps the names and the labels and gives those at most 20.
"""

from itertools import accumulate, repeat
from operator import mul
from typing import Literal

Buckets = Literal["compat", "lean"]

# Every `tgi_*` name that ends in `duration`, seconds; the same in both modes. Multiplied one after
# the other, as TGI does: powers of 1.5 are rounded otherwise, and the label `le` shows every digit.
DURATION_BOUNDS = tuple(accumulate(repeat(1.5, 35), mul, initial=0.0001))[1:]
BATCH_BOUNDS = tuple(range(1, 1025))  # requests
LEAN_BATCH_BOUNDS = tuple(2**k for k in range(11))
# Speculated tokens per step: whole numbers, so that quantiles read from the buckets are exact.
SKIPPED_BOUNDS = tuple(range(17))

# Our own families, seconds.
FIRST_TOKEN_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
    10.0, 25.0, 50.0, 100.0, 250.0,
)  # fmt: skip
# A small model on a good machine decodes in under a millisecond; a sick one takes seconds.
TOKEN_BOUNDS = (
    0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1,
    0.2, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
REQUEST_BOUNDS = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    1800.0,
)  # fmt: skip
LAG_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
STEP_TOKENS_BOUNDS = tuple(2**k for k in range(15))  # tokens computed in one step


def token_bounds(limit: int, buckets: Buckets) -> tuple[float, ...]:
    """Up to `limit` tokens: 100 equal steps, or 1-2-5 steps per decade and the limit itself."""
    if buckets == "compat":
        return tuple(limit / 100 * k for k in range(1, 101))
    ladder = [digit * 10.0**power for power in range(7) for digit in (1, 2, 5)]
    return (*(bound for bound in ladder if bound < limit), float(limit))


def batch_bounds(buckets: Buckets) -> tuple[float, ...]:
    """Of `tgi_batch_next_size`."""
    return BATCH_BOUNDS if buckets == "compat" else LEAN_BATCH_BOUNDS
