"""RowMasks: the grammars of a worker's rows, and which tokens each may draw next.

Masks are computed on threads of their own: advancing a row is only noted in the step, and whoever
samples the row next waits for its mask.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from tiercel.guidance.cache import GrammarCache
from tiercel.guidance.grammar import AnyText, Grammar, GrammarError, Words
from tiercel.wire import request as wire

_PATIENCE_S = 30.0  # for a mask; only a defect takes so long
_ANY_TEXT = AnyText()


class RowMasks:
    """Grammars for up to `max_rows` rows. One thread calls, others work."""

    def __init__(
        self, cache: GrammarCache, max_rows: int, vocab_size: int, *, threads: int = 1
    ) -> None:
        self._cache = cache
        self._words: Words = np.zeros((max_rows, -(-vocab_size // 32)), dtype=np.int32)
        self._grammars: list[Grammar] = [_ANY_TEXT] * max_rows
        self._errors: list[str | None] = [None] * max_rows
        self._jobs: list[Future[None] | None] = [None] * max_rows  # None: any text
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "masks")  # makes threads when jobs come

    def start(self, row: int, grammar: wire.Grammar | None, generated: list[int]) -> None:
        """A sequence takes the row; `generated` are its tokens so far, if it was preempted."""
        self.settle([row])  # a job of the row's last sequence may still write
        if grammar is None:
            self._jobs[row] = None
            self._grammars[row] = _ANY_TEXT
        else:
            self._jobs[row] = self._pool.submit(self._begin, row, grammar, generated)

    def constrains(self, row: int) -> bool:
        """Whether the row has a grammar."""
        return self._jobs[row] is not None

    def advance(self, rows: list[int], token_ids: list[int]) -> None:
        """These rows, all different, got these tokens. Returns at once."""
        pairs = [
            (row, token)
            for row, token in zip(rows, token_ids, strict=True)
            if self._jobs[row] is not None
        ]
        for first in range(min(self._threads, len(pairs))):
            part = pairs[first :: self._threads]
            job = self._pool.submit(self._advance, part)
            for row, _ in part:
                self._jobs[row] = job

    def settle(self, rows: list[int]) -> None:
        """Wait until the masks of these rows are there. Never raises for a row's error."""
        for row in rows:
            job = self._jobs[row]
            if job is not None:
                job.result(_PATIENCE_S)

    def allowed(self, rows: list[int]) -> npt.NDArray[np.uint8]:
        """[rows, 4 ceil(vocab / 32)], a copy: bit i of byte b allows token 8 b + i next.

        Waits for the masks. Raises GrammarError if one of the rows cannot go on.
        """
        self.settle(rows)
        for row in rows:
            error = self._errors[row]
            if self.constrains(row) and error is not None:
                raise GrammarError(error)
        return self._words[rows].view(np.uint8)

    def _begin(self, row: int, grammar: wire.Grammar, generated: list[int]) -> None:
        self._errors[row] = None
        try:
            state = self._cache.get(grammar.kind, grammar.text).constraint()
            for token in generated:
                state.advance(token)
            state.fill_mask(self._words[row])
            self._grammars[row] = state
        # A panic of the library's Rust is a BaseException; nothing else of that kind comes here.
        except BaseException as error:  # noqa: BLE001 - the per-request fault boundary
            self._fail(row, error)

    def _advance(self, pairs: list[tuple[int, int]]) -> None:
        for row, token in pairs:
            if self._errors[row] is not None:
                continue
            try:
                self._grammars[row].advance(token)
                self._grammars[row].fill_mask(self._words[row])
            except BaseException as error:  # noqa: BLE001 - the per-request fault boundary
                self._fail(row, error)

    def _fail(self, row: int, error: BaseException) -> None:
        what = str(error) if isinstance(error, GrammarError) else type(error).__name__
        self._errors[row] = f"the grammar cannot go on: {what}"
        self._grammars[row] = _ANY_TEXT
