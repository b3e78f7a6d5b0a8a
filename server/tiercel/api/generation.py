"""One sequence at the edge: from the engine's deltas to texts, stop strings and an ending.

Knows nothing of HTTP or JSON. The engine ends a sequence for EOS and for length; stop strings are
found here, and closing the engine's iterator then aborts the sequence.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import msgspec

from tiercel.api.record import RequestRecord
from tiercel.api.validation import ValidatedRequest
from tiercel.engine.client import EngineClient
from tiercel.errors import GenerationError, IncompleteGeneration, RequestError, ValidationError
from tiercel.text.detokenizer import Detokenizer
from tiercel.text.stop import StopMatcher
from tiercel.text.tokenizer import Tokenizer
from tiercel.wire.messages import Token, TokenDelta
from tiercel.wire.request import GenerationRequest


class ScoredToken(msgspec.Struct):
    """A token with its text and natural-log probability."""

    id: int
    text: str
    logprob: float
    special: bool


class GeneratedToken(ScoredToken):
    """A token of the answer. `top` are the best at its position, best first."""

    top: list[ScoredToken]


class Generation:
    """Iterate `deltas()` once; the attributes are final when it ends without an error."""

    def __init__(
        self,
        request: ValidatedRequest,
        engine: EngineClient,
        tokenizer: Tokenizer,
        record: RequestRecord,
    ) -> None:
        self.finish_reason: str | None = None
        self.generated_tokens = 0
        self.input_tokens = len(request.token_ids)
        self.details = request.details
        self.top_n_tokens = request.sampling.top_n_tokens
        self.seed = request.sampling.seed if request.sampling.do_sample else None
        self._request = request
        self._engine = engine
        self._tokenizer = tokenizer
        self._record = record
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(request.stop) if request.stop else None
        self._excess = 0  # characters of the text behind a stop string
        self._prompt_logprobs: list[float | None] = []

    async def deltas(self) -> AsyncGenerator[list[GeneratedToken], None]:
        """What each step added, until the sequence has a `finish_reason`.

        Raises RequestError for what the engine could not do. Closing it early aborts the sequence.
        """
        async with aclosing(self._engine.generate(self._wire_request())) as deltas:
            async for delta in deltas:
                self._observe(delta)
                tokens = self._read(delta)
                if self.finish_reason is not None:
                    break
                if tokens:
                    yield tokens
                if delta.error is not None:
                    raise _error(delta)
        if self.finish_reason is None:
            raise IncompleteGeneration
        # The engine is rid of the sequence, however long the client takes to read the end.
        self._record.succeeded(self.finish_reason, self.generated_tokens)
        yield tokens

    def text(self) -> str:
        """All generated text without special tokens, up to and with a matched stop string."""
        text = self._detokenizer.generated_text()
        return text[: len(text) - self._excess]

    def full_text(self, *, by_default: bool) -> str:
        """The text, behind the whole prompt if the request wants that."""
        wanted = self._request.return_full_text
        if by_default if wanted is None else wanted:
            return self._request.inputs + self.text()
        return self.text()

    def prefill(self) -> Iterator[tuple[int, str, float | None]]:
        """(id, text, logprob) of the input's tokens, where they were asked for and are enabled."""
        for token_id, logprob in zip(self._request.token_ids, self._prompt_logprobs, strict=False):
            yield token_id, self._tokenizer.token_text(token_id), logprob

    def _wire_request(self) -> GenerationRequest:
        request = self._request
        return GenerationRequest(
            id=self._record.request_id,
            token_ids=request.token_ids,
            max_new_tokens=request.max_new_tokens,
            sampling=request.sampling,
            stop_token_ids=list(self._tokenizer.eos_token_ids),
            prompt_logprobs=request.prompt_logprobs,
            arrival_s=self._record.arrival_s,
        )

    def _observe(self, delta: TokenDelta) -> None:
        if self.generated_tokens:
            self._record.next_delta()
        elif delta.tokens:
            self._record.first_delta(delta.queue_s, delta.cached_tokens)
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = delta.prompt_logprobs

    def _read(self, delta: TokenDelta) -> list[GeneratedToken]:
        """The delta's tokens, up to a stop string. Sets `finish_reason` when it is the end."""
        tokens = []
        remaining = len(delta.tokens)
        for token in delta.tokens:
            remaining -= 1
            engine_reason = None if remaining else delta.finish_reason
            tokens.append(self._token(token, engine_reason))
            if self.finish_reason is not None:
                break
        self._record.generated_tokens = self.generated_tokens
        return tokens

    def _token(self, token: Token, engine_reason: str | None) -> GeneratedToken:
        """The order is the contract's (2.6): length, EOS, then stop strings."""
        self.generated_tokens += 1
        text = self._detokenizer.push(token.id)
        special = self._tokenizer.is_special(token.id)
        self.finish_reason = engine_reason
        if self._stops is not None and engine_reason != "eos_token":
            end = self._stops.feed(text)
            if end is not None:
                # A special token's text is not part of the generated text anyway.
                self._excess = 0 if special else len(text) - end
                text = text[:end]
                self.finish_reason = engine_reason or "stop_sequence"
        top = [
            self._scored(id_, logprob)
            for id_, logprob in zip(token.top_ids, token.top_logprobs, strict=True)
        ]
        return GeneratedToken(token.id, text, token.logprob, special, top)

    def _scored(self, token_id: int, logprob: float) -> ScoredToken:
        """A token by itself, outside the text."""
        tokenizer = self._tokenizer
        return ScoredToken(
            token_id, tokenizer.token_text(token_id), logprob, tokenizer.is_special(token_id)
        )


def _error(delta: TokenDelta) -> RequestError:
    message = delta.error or "unknown"
    if delta.error_type == "validation":
        return ValidationError(message)
    return GenerationError(message)
