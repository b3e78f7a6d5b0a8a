"""How many cores one step uses: all of them where the step is long, one where it is short."""

import torch

# A short step gains little from a second core (16 tokens through a 4M model: 110 us of GEMM per
# layer on one core, 100 on two) and loses much when that core is busy, say with the HTTP process:
# every parallel region then waits for a thread that does not run (9 ms became 36 and more).
SHORT_STEP_S = 0.004
# What one core does, roughly; only the order of magnitude matters.
BYTES_PER_S = 20e9
FLOPS = 100e9


class StepThreads:
    """Sets torch's threads before each step. Changing them takes less than a microsecond."""

    def __init__(self, limit: int, weights_bytes: int, item_bytes: int) -> None:
        self._limit = limit
        self._fixed_s = weights_bytes / BYTES_PER_S
        self._token_s = 2 * weights_bytes / item_bytes / FLOPS

    def use(self, tokens: int) -> int:
        """Choose for a step of so many tokens; returns the number chosen."""
        short = self._fixed_s + tokens * self._token_s < SHORT_STEP_S
        threads = 1 if short else self._limit
        torch.set_num_threads(threads)
        return threads
