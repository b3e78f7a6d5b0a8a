"""One request while the engine has it: its tokens, how many are computed, what it holds."""

from tiercel.cache.pool import Allocation
from tiercel.cache.prefix import PrefixChain
from tiercel.wire.messages import Token, TokenDelta
from tiercel.wire.request import GenerationRequest
from tiercel.wire.step import PromptLogprobs, RowStart, SampledToken

NO_ROW = -1


class Sequence:
    """Tokens known here are `len(tokens)`; tokens [0, computed) have keys and values in blocks.

    Tokens [computed, planned) are in steps that are out. A step that reaches the last known token
    draws the next one, so behind `planned` there always is a token to compute: one known here, or
    the one that only the device knows until that step lands. The slice due is therefore
    `max(1, len(tokens) - planned)` tokens long, up to position `computable`.
    """

    __slots__ = (
        "ahead",
        "allocation",
        "cached_tokens",
        "chain",
        "computable",
        "computed",
        "ended",
        "id",
        "max_tokens",
        "planned",
        "prompt_logprobs",
        "prompt_tokens",
        "prompt_top_ids",
        "prompt_top_logprobs",
        "published",
        "queue_s",
        "request",
        "resumed",
        "row",
        "started",
        "stop_token_ids",
        "tokens",
    )

    def __init__(
        self,
        request: GenerationRequest,
        chain: PrefixChain | None,
        allocation: Allocation,
        *,
        ahead: bool = False,
    ) -> None:
        """`chain` is None where prefix caching is off: then nothing is ever hashed.

        `ahead`: a step may be planned for it while another one with it is out.
        """
        self.request = request
        self.id = request.id
        self.tokens = list(request.token_ids)
        self.prompt_tokens = len(request.token_ids)
        self.max_tokens = self.prompt_tokens + request.max_new_tokens
        self.computable = self.max_tokens - 1  # the last one drawn is never computed
        self.stop_token_ids = frozenset(request.stop_token_ids)
        self.chain = chain
        self.allocation = allocation  # empty while it has no row
        self.row = NO_ROW
        self.resumed = False  # was preempted before: its hits are its own work, not the cache's
        self.computed = 0
        self.planned = 0
        self.published = 0  # full blocks offered to the prefix index, from the first on
        # A grammar's mask is made on the host from the token before, so that has to be there.
        self.ahead = ahead and request.grammar is None
        self.ended = False  # makes no further delta; keeps row and blocks while it is in flight
        self.queue_s: float | None = None  # set once, when first scheduled
        self.cached_tokens = 0
        self.started = False  # its first delta has been made
        # Position 0 has no logprob; the others are filled chunk by chunk.
        self.prompt_logprobs: list[float | None] | None = (
            [None] if request.prompt_logprobs else None
        )
        wants_top = request.prompt_logprobs and request.prompt_top_n > 0
        self.prompt_top_ids: list[list[int]] = [[]] if wants_top else []
        self.prompt_top_logprobs: list[list[float]] = [[]] if wants_top else []

    @property
    def reads_prefix_cache(self) -> bool:
        """Not while prompt logprobs are owed: they exist only for positions that are computed."""
        return self.chain is not None and self.prompt_logprobs is None

    @property
    def in_flight(self) -> bool:
        """A plan with a slice of it is out, and not applied yet."""
        return self.planned != self.computed

    def advance(self, start: int, count: int, block_tokens: int) -> None:
        """Tokens up to `start + count` are computed; from now on others can use them.

        Those before `start` that were not computed yet came out of the cache with this slice.
        """
        self.computed = start + count
        if self.computed >= (self.published + 1) * block_tokens:
            self._publish(start // block_tokens, block_tokens)
        if not self.started and self.computed == self.prompt_tokens:
            self.remember_rest(block_tokens)  # the next one with this prompt may come now

    def _publish(self, own: int, block_tokens: int) -> None:
        """Full computed blocks become findable; content that is already there is kept once.

        Blocks not yet published before index `own` are shared ones, found under their digests.
        """
        full = self.computed // block_tokens
        if self.chain is not None:
            self.chain.extend(self.tokens, full)
            for index in range(max(self.published, own), full):
                if self.allocation.publish(index, self.chain.digests[index]):
                    self._remember(index, (index + 1) * block_tokens, block_tokens)
        self.published = full

    def remember_rest(self, block_tokens: int) -> None:
        """What is computed of the last block, if it is not full, can be copied from now on."""
        if self.chain is not None and self.computed > self.published * block_tokens:
            self._remember(self.published, self.computed, block_tokens)

    def _remember(self, index: int, end: int, block_tokens: int) -> None:
        if self.chain is not None:
            tokens = self.tokens[index * block_tokens : end]
            self.allocation.remember(index, self.chain.before(index), tokens)

    def start_over(self, allocation: Allocation) -> None:
        """Preempted: every known token is to be computed again, into other blocks."""
        self.allocation = allocation
        self.computed = self.planned = self.published = 0
        self.resumed = True

    def row_start(self) -> RowStart:
        """What a worker needs to give this sequence its row, now or again."""
        return RowStart(
            row=self.row,
            token_ids=list(self.tokens),
            prompt_tokens=self.prompt_tokens,
            sampling=self.request.sampling,
            prompt_logprobs=self.prompt_logprobs is not None,
            prompt_top_n=self.request.prompt_top_n,
            grammar=self.request.grammar,
        )

    def end(self) -> None:
        """It makes no further delta, and nothing more is planned for it."""
        self.ended, self.ahead = True, False

    def drop(self, end: int) -> None:
        """A step with its tokens up to `end` is back, and what it computed does not count."""
        self.computed = end

    def add_prompt_logprobs(self, values: PromptLogprobs) -> None:
        """Keep the logprobs of one chunk; those of a chunk that ran before are replaced."""
        if self.prompt_logprobs is not None:
            del self.prompt_logprobs[values.first :]
            self.prompt_logprobs += values.logprobs
            if self.prompt_top_ids:
                del self.prompt_top_ids[values.first :], self.prompt_top_logprobs[values.first :]
                self.prompt_top_ids += values.top_ids
                self.prompt_top_logprobs += values.top_logprobs

    def add_token(self, sampled: SampledToken) -> TokenDelta:
        """The sampled token becomes known; the delta says whether the sequence has ended."""
        self.tokens.append(sampled.token_id)
        finish_reason = None
        if len(self.tokens) >= self.max_tokens:
            finish_reason = "length"
        elif sampled.token_id in self.stop_token_ids:
            finish_reason = "eos_token"
        token = Token(sampled.token_id, sampled.logprob, sampled.top_ids, sampled.top_logprobs)
        if self.started:
            return TokenDelta(self.id, [token], finish_reason)
        self.started = True
        logprobs, self.prompt_logprobs = self.prompt_logprobs, None
        top_ids, self.prompt_top_ids = self.prompt_top_ids, []
        top_logprobs, self.prompt_top_logprobs = self.prompt_top_logprobs, []
        return TokenDelta(
            request_id=self.id,
            tokens=[token],
            finish_reason=finish_reason,
            queue_s=self.queue_s,
            cached_tokens=self.cached_tokens,
            prompt_logprobs=logprobs,
            prompt_top_ids=top_ids,
            prompt_top_logprobs=top_logprobs,
        )

    def fail(self, message: str, error_type: str) -> TokenDelta:
        """The delta that ends the sequence with an error."""
        return TokenDelta(
            request_id=self.id,
            tokens=[],
            error=message,
            error_type=error_type,
            queue_s=None if self.started else self.queue_s,
            cached_tokens=0 if self.started else self.cached_tokens,
        )
