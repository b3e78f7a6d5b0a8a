"""One sequence at the edge: from the engine's deltas to texts, stop strings and an ending.

Knows nothing of HTTP or JSON. The engine ends a sequence for EOS and for length; stop strings are
found here, and closing the engine's iterator then aborts the sequence.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import msgspec

from tiercel.api.record import SequenceRecord
from tiercel.api.validation import ValidatedRequest
from tiercel.engine.client import EngineClient
from tiercel.errors import (
    GenerationError,
    GrammarRefused,
    IncompleteGeneration,
    RequestError,
    SlowClient,
)
from tiercel.text.detokenizer import Detokenizer
from tiercel.text.stop import StopCutter, StopMatcher
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
    """A token of the answer. `top` are the best at its position, best first.

    `shown` is its part of a text without special tokens and, with `hide_stop`, without the stop
    string: what could still become one is shown with a later token.
    """

    top: list[ScoredToken]
    shown: str


class PrefillToken(msgspec.Struct):
    """A token of the prompt. `logprob` is that of the raw logits, None for the first."""

    id: int
    text: str
    logprob: float | None
    top: list[ScoredToken]


class Generation:
    """Iterate `deltas()` once; the attributes are final when it ends without an error."""

    def __init__(
        self,
        request: ValidatedRequest,
        engine: EngineClient,
        tokenizer: Tokenizer,
        record: SequenceRecord,
    ) -> None:
        self.record = record
        self.finish_reason: str | None = None
        self.generated_tokens = 0
        self.input_tokens = len(request.token_ids)
        self.details = request.details
        self.top_n_tokens = request.sampling.top_n_tokens
        self.seed = request.sampling.seed if request.sampling.do_sample else None
        self._request = request
        self._engine = engine
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        stops = request.stop
        self._stops = StopMatcher(stops) if stops and not request.hide_stop else None
        self._cutter = StopCutter(stops) if stops and request.hide_stop else None
        self._excess = 0  # characters of the text behind a stop string
        self._seen = 0  # characters of the text that tokens have shown or the cutter holds
        self._shown = ""  # by the tokens, where stop strings are hidden
        self._first: TokenDelta | None = None

    async def deltas(self) -> AsyncGenerator[list[GeneratedToken], None]:
        """What each step added, until the sequence has a `finish_reason`.

        Raises RequestError for what the engine could not do. Closing it early aborts the sequence.
        """
        async with aclosing(self._engine.generate(self._wire_request())) as deltas:
            async for delta in deltas:
                self._observe(delta)
                with self.record.reading:
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
        self.record.done(self.finish_reason)
        yield tokens

    def text(self) -> str:
        """The generated text without special tokens, up to a matched stop string.

        With that string in it, unless the request hides it.
        """
        if self._cutter is not None:
            return self._shown
        text = self._detokenizer.generated_text()
        return text[: len(text) - self._excess]

    def full_text(self, *, by_default: bool) -> str:
        """The text, behind the whole prompt if the request wants that."""
        wanted = self._request.return_full_text
        if by_default if wanted is None else wanted:
            return self._request.inputs + self.text()
        return self.text()

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache answered."""
        return self.record.cached_tokens

    def prefill(self) -> Iterator[PrefillToken]:
        """The input's tokens, where their logprobs were asked for and are enabled."""
        first = self._first
        if first is None or first.prompt_logprobs is None:
            return
        for index, logprob in enumerate(first.prompt_logprobs):
            token_id = self._request.token_ids[index]
            top = []
            if first.prompt_top_ids:
                best = zip(
                    first.prompt_top_ids[index], first.prompt_top_logprobs[index], strict=True
                )
                top = [self._scored(*pair) for pair in best]
            yield PrefillToken(token_id, self._tokenizer.token_text(token_id), logprob, top)

    def _wire_request(self) -> GenerationRequest:
        request = self._request
        return GenerationRequest(
            id=self.record.sequence_id,
            token_ids=request.token_ids,
            max_new_tokens=request.max_new_tokens,
            sampling=request.sampling,
            stop_token_ids=list(self._tokenizer.eos_token_ids),
            prompt_logprobs=request.prompt_logprobs,
            cache_salt=self.record.tenant,
            grammar=request.grammar,
            prompt_top_n=request.prompt_top_n,
            arrival_s=self.record.queued(),
        )

    def _observe(self, delta: TokenDelta) -> None:
        if self.generated_tokens:
            self.record.next_delta(len(delta.tokens))
        elif delta.tokens:
            self.record.first_delta(delta.queue_s, delta.cached_tokens)
            self._first = delta
        elif delta.queue_s is not None:  # it failed before its first token
            self.record.waited(delta.queue_s)

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
        self.record.generated_tokens = self.generated_tokens
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
        if special:  # what the tokens before it held back comes out with it
            name = self._tokenizer.token_text(token.id)
            # The end of a sequence comes before stop strings.
            shown = self._show(
                text.removesuffix(name), "" if engine_reason == "eos_token" else name
            )
        else:
            shown = self._show(text)
        return GeneratedToken(token.id, text, token.logprob, special, top, shown)

    def _show(self, text: str, special: str = "") -> str:
        """Sets `finish_reason` when a stop string that is not to be seen is complete.

        `special` is a special token's text behind it: never shown, but it can be a stop string.
        """
        if self.finish_reason is not None:
            text = self._detokenizer.generated_text()  # the end may be held back
            text = text[self._seen : len(text) - self._excess]
        self._seen += len(text)
        if self._cutter is None:
            return text
        shown = self._cutter.feed(text)
        if special and not self._cutter.stopped:
            shown += self._cutter.feed(special, hidden=True)
        if self._cutter.stopped:
            self.finish_reason = "stop_sequence"
        elif self.finish_reason is not None:
            shown += self._cutter.flush()
        self._shown += shown
        return shown

    def _scored(self, token_id: int, logprob: float) -> ScoredToken:
        """A token by itself, outside the text."""
        tokenizer = self._tokenizer
        return ScoredToken(
            token_id, tokenizer.token_text(token_id), logprob, tokenizer.is_special(token_id)
        )


def _error(delta: TokenDelta) -> RequestError:
    message = delta.error or "unknown"
    if delta.error_type == "validation":
        return GrammarRefused(message)  # limits have been checked: nothing else is refused there
    if delta.error_type == "slow_client":
        return SlowClient(message)
    return GenerationError(message)
