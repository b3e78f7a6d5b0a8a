"""How many prefill tokens a step may carry, so that decoding sequences see no long gap.

Times of past steps give a robust cost model (medians only: one slow step changes nothing); a step
with decoding rows then gets what fits in `stretch` times a pure decode step, fewer times where that
would be long for everybody who waits; one without them what fits in some seconds. It counts tokens
and seconds; which sequence gets them is the scheduler's business.
"""

from collections import deque
from dataclasses import dataclass
from statistics import median

from tiercel.wire.step import StepPlan

FLOOR_TOKENS = 16  # the first slice of a step gets this much whatever the clock says
FIRST_TOKENS = 64  # the chunk that is tried before anything bigger has been seen
NEAR_TOKENS = 128  # contexts that differ by no more than this cost about the same
DECODE_WINDOW = 16  # decode-only steps remembered per size class of the batch
PREFILL_WINDOW = 48  # steps with prefill remembered: enough to see the cost of long contexts
RECENT = 7  # of these, the ones that set the present level
FINE_BELOW_BLOCKS = 8  # slices shorter than this many blocks need not end at a block boundary
TRUSTED = 3  # fewer observations than this are treated as possibly wrong
PROBE_AFTER = 64  # steps with prefill after which one without is run, to measure decoding again
PROBE_SOON = 8  # the same while the decode time is not trusted
# A step of this many seconds is as long as prefill may make one, unless decoding alone takes more
# than half of it; then a step may take two decode steps. Whoever comes or goes waits for the end of
# a step. When 67 streams dropped on two Zen 1 cores (146M), their blocks were free after 2.4 and
# 2.9 s without this, after 1.9 with 1.5 here and 1.3 with 1.0.
LONG_STEP_S = 1.0
LEAST_STRETCH = 2.0
# A step without decoding rows may take about so many seconds: only those wait who would come or go.
# All of `--max-batch-prefill-tokens`, 4,096 of a 7B, would be five minutes on two cores of 180
# GFLOPS.
QUIET_STEP_S = 5.0
QUIET_FIRST_TOKENS = 256  # of such a step, while none has been measured
QUIET_WINDOW = 3  # of such steps, the cheapest of which says what a token costs
CLOCK_S = 1e-9  # what a clock can tell apart


@dataclass(frozen=True)
class StepShape:
    """What one step consisted of."""

    prefill_tokens: int  # tokens of slices longer than one
    decode_rows: int  # slices of one token
    new_rows: int  # sequences that took a row
    mean_context: float = 0.0  # cached tokens before a prefill token, on average


def describe(plan: StepPlan) -> StepShape:
    """What a plan consists of. A pure function of the plan."""
    tokens, decode_rows, context = 0, 0, 0.0
    for piece in plan.slices:
        if piece.count == 1:
            decode_rows += 1
        else:
            tokens += piece.count
            context += piece.count * (piece.start + piece.count / 2)
    return StepShape(tokens, decode_rows, len(plan.starts), context / tokens if tokens else 0.0)


@dataclass(frozen=True)
class Observation:
    """A step with prefill."""

    tokens: int
    context: float
    seconds_per_token: float
    mixed: bool  # rows decoded in the same step


@dataclass(frozen=True)
class CostModel:
    """What a prefill token costs by the tokens before it, in seconds, fitted to observations."""

    slope: float  # per token of context
    level: float
    least: float
    longest: int  # tokens of the longest chunk that it follows from
    mixed: list[Observation]  # with decoding rows, oldest first

    def seconds_per_token(self, context: float) -> float:
        """A fit from long contexts says little about short ones: never less than `least`, nor than
        such contexts have cost.

        Of 36 first chunks of prompts (146M, 8 rows) the worst took 2.2 times what the line alone
        says, and one in ten 1.36 times or more; of 36 others against this, 1.35 and 1.08.
        """
        return max(self.level + self.slope * context, self.least, self._near(context))

    def _near(self, context: float) -> float:
        """The median of the latest at such a context; the cheaper of two; 0 where only one is."""
        reach = max(NEAR_TOKENS, context / 4)
        near = (o.seconds_per_token for o in self.mixed if abs(o.context - context) <= reach)
        latest = sorted(list(near)[-TRUSTED:])
        return latest[(len(latest) - 1) // 2] if len(latest) > 1 else 0.0


class Allowance:
    """What one step may still spend on slices longer than one token."""

    def __init__(self, budget: "PrefillBudget", tokens: int, seconds: float | None) -> None:
        """`seconds` None: only `tokens` limits."""
        self._budget = budget
        self._tokens = tokens
        self._seconds = seconds
        self._untouched = True

    def offer(self, wanted: int, start: int) -> int:
        """How many of `wanted` tokens from position `start` on may run; 0: none in this step.

        A slice that does not reach its end stops at a block boundary, a small one that time
        limits at a quarter of a block. One token is a decode slice and always free. Nothing is
        spent yet.
        """
        if wanted <= 1:
            return wanted
        block = step = self._budget.block_tokens
        limit = self._tokens
        if self._seconds is not None:
            affordable = self._affordable(self._seconds, start)
            limit = min(limit, affordable)
            if self._untouched:
                limit = max(limit, min(FLOOR_TOKENS, self._tokens))
            if limit < FINE_BELOW_BLOCKS * block:
                step = max(1, block // 4)  # a whole block more or less would be felt
            # A remainder of less than half a block would cost a whole further step.
            if wanted <= min(self._tokens, limit + block // 2) and limit > 0:
                return wanted
            limit = min(self._tokens, limit + step // 2)  # to the nearest boundary, not below
        if wanted <= limit:
            return wanted
        aligned = (start + limit) // step * step - start
        if self._untouched:
            return aligned if aligned > 1 else limit  # whatever the boundaries: progress
        return aligned if aligned >= min(FLOOR_TOKENS, block) else 0

    def _affordable(self, seconds: float, start: int) -> int:
        """Tokens that fit in the time. What makes a chunk longer than familiar ones has to fit at
        twice its price: a matrix of 512 rows takes twice as long per row as one of 480 with AMX.
        """
        budget, familiar = self._budget, self._budget.familiar_tokens()
        most = budget.affordable(seconds, start, self._tokens)
        if most <= familiar:
            return most
        return max(familiar, budget.affordable(seconds / 2, start, self._tokens))

    def spend(self, count: int, start: int) -> None:
        """A slice of `count` tokens from `start` on is in the step."""
        if count <= 1:
            return
        self._untouched = False
        self._tokens -= count
        if self._seconds is not None:
            cost = count * self._budget.seconds_per_token(start + count / 2)
            self._seconds = max(0.0, self._seconds - cost)


class PrefillBudget:
    """Learns what decoding and prefill cost from the steps that ran."""

    def __init__(self, max_tokens: int, stretch: float, block_tokens: int) -> None:
        """`max_tokens` limits every step; `stretch` 0 switches the limit by time off."""
        self.block_tokens = block_tokens
        self._max_tokens = max_tokens
        self._stretch = stretch
        self._decode: dict[int, deque[float]] = {}  # seconds, by bit length of the row count
        self._prefill: deque[Observation] = deque(maxlen=PREFILL_WINDOW)
        self._quiet: deque[float] = deque(maxlen=QUIET_WINDOW)  # seconds per token, all told
        self._since_decode = 0  # steps with prefill since decoding was last measured
        self._model: CostModel | None = None  # None: not fitted since the last observation

    def open(self, decode_rows: int) -> Allowance:
        """The allowance of a step in which `decode_rows` sequences get their next token."""
        if self._stretch <= 0:
            return Allowance(self, self._max_tokens, None)
        if decode_rows == 0:
            return Allowance(self, min(self._max_tokens, self._quiet_tokens()), None)
        decode_s = self.decode_seconds(decode_rows)
        measured = sum(map(len, self._decode.values()))
        probe_after = PROBE_AFTER if measured >= TRUSTED else PROBE_SOON
        if decode_s is None or self._since_decode >= probe_after:
            return Allowance(self, 0, None)  # measured, not guessed: one step without prefill
        # Grow at most twofold beyond what has been seen lately: the model is only locally right.
        cap = max(FIRST_TOKENS, 2 * self._cost().longest) if measured >= TRUSTED else FIRST_TOKENS
        return Allowance(self, min(self._max_tokens, cap), self._spare_seconds(decode_s))

    def _quiet_tokens(self) -> int:
        """For a step in which nobody decodes. Its whole time is shared out among its tokens: of a
        short prompt most is reading the weights, so the next chunk is too short, not too long.
        """
        if not self._quiet:
            return QUIET_FIRST_TOKENS
        return max(FLOOR_TOKENS, int(QUIET_STEP_S / max(min(self._quiet), CLOCK_S)))

    def _spare_seconds(self, decode_s: float) -> float:
        """For prefill in a step whose decoding rows take `decode_s`."""
        longest = max(LONG_STEP_S, LEAST_STRETCH * decode_s)
        return max(0.0, min(self._stretch * decode_s, longest) - decode_s)

    def familiar_tokens(self) -> int:
        """How long a chunk may be whose cost is known from others, as far as it is known at all."""
        return max(FIRST_TOKENS, self._cost().longest * 5 // 4)

    def observe(self, shape: StepShape, seconds: float) -> None:
        """A step of this shape took `seconds`, as the worker measured it.

        `StepOutput.total_s`: what the step adds to the time between two tokens. With two steps out
        it is the time between their ends, not from plan to result. The observation then comes one
        plan later than the next step, so a probe without prefill takes two steps.
        """
        if shape.prefill_tokens == 0:
            window = self._decode.setdefault(
                shape.decode_rows.bit_length(), deque(maxlen=DECODE_WINDOW)
            )
            window.append(seconds)
            self._since_decode = 0
            return
        if shape.decode_rows:
            self._since_decode += 1
        if shape.prefill_tokens < FLOOR_TOKENS // 2:
            return  # nearly all of its time is not prefill
        if not shape.decode_rows:
            self._quiet.append(seconds / shape.prefill_tokens)
        # Alone, a chunk still reads the weights once: about one row's decode step.
        base = self.decode_seconds(max(1, shape.decode_rows)) or 0.0
        rate = max(0.0, seconds - base) / shape.prefill_tokens
        self._prefill.append(
            Observation(shape.prefill_tokens, shape.mean_context, rate, shape.decode_rows > 0)
        )
        self._model = None

    def decode_seconds(self, rows: int) -> float | None:
        """The usual time of a step in which only `rows` sequences decode; None: never seen.

        Row counts are classed by powers of two; the nearest class seen stands in for others.
        """
        if not self._decode:
            return None
        size = rows.bit_length()
        return median(self._decode[min(self._decode, key=lambda seen: (abs(seen - size), seen))])

    def seconds_per_token(self, context: float) -> float:
        """The marginal cost of a prefill token with `context` tokens before it; 0: not known."""
        return self._cost().seconds_per_token(context)

    def affordable(self, seconds: float, start: int, most: int) -> int:
        """Tokens from position `start` on that take about `seconds`, at most `most`."""
        guess = float(most)
        for _ in range(2):  # the rate depends, weakly, on where the chunk will end
            rate = self.seconds_per_token(start + guess / 2)
            if rate <= 0.0:
                return most if seconds > 0.0 else 0
            guess = min(float(most), seconds / rate)
        return int(guess)

    def _cost(self) -> CostModel:
        if self._model is None:
            self._model = self._fit()
        return self._model

    def _fit(self) -> CostModel:
        slope, mixed = self._fit_slope(), [o for o in self._prefill if o.mixed]
        # Those with decoding rows, if any, say most about the next step.
        telling = mixed if len(mixed) >= TRUSTED else list(self._prefill)
        recent = telling[-RECENT:]
        # While the slope is poorly known, the level follows the very latest chunks instead.
        known = len(self._prefill) >= PREFILL_WINDOW // 2
        latest = recent if known else recent[-TRUSTED:]
        level = median([o.seconds_per_token - slope * o.context for o in latest] or [0.0])
        least = median([o.seconds_per_token for o in recent] or [0.0]) / 2
        longest = max((o.tokens for o in telling), default=0)
        return CostModel(slope, level, least, longest, mixed)

    def _fit_slope(self) -> float:
        """Seconds per token per token of context: the median slope over pairs of observations.

        Each of the lower half, by context, is paired with its counterpart in the upper half
        (Theil and Sen's estimator with n / 2 pairs): wild values do not move it.
        """
        ordered = sorted(self._prefill, key=lambda o: o.context)
        half = len(ordered) // 2
        slopes = [
            (high.seconds_per_token - low.seconds_per_token) / (high.context - low.context)
            for low, high in zip(ordered[:half], ordered[len(ordered) - half :], strict=True)
            if high.context - low.context >= FIRST_TOKENS
        ]
        return max(0.0, median(slopes)) if len(slopes) >= TRUSTED else 0.0
