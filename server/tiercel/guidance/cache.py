"""GrammarCache: the grammars that were used last, compiled. Bounded in number and in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tiercel.guidance.grammar import GrammarError

if TYPE_CHECKING:
    from tiercel.guidance.constraints import CompiledGrammar, TokenTable

MAX_ENTRIES = 128
MAX_BYTES = 64 << 20


class GrammarCache:
    """Compiles each grammar once while it is in use. Any thread may ask."""

    def __init__(
        self,
        table: Callable[[], "TokenTable"],
        *,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`table` is called when the first grammar arrives; what it raises reaches the caller."""
        self._load_table = table
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()
        self._table: TokenTable | None = None
        self._table_lock = threading.Lock()

    @classmethod
    def of_model(cls, folder: Path | str) -> "GrammarCache":
        """For the tokenizer in a model's folder."""

        def load() -> "TokenTable":
            # Here: the library is not needed before, nor where no grammar ever arrives.
            try:
                from tiercel.guidance.constraints import TokenTable
            except ImportError as error:
                raise GrammarError(f"grammars need the package {error.name}") from error
            return TokenTable.load(folder)

        return cls(load)

    def table(self) -> "TokenTable":
        """The model's tokens, read when first asked for. Raises like `get`."""
        with self._table_lock:
            if self._table is None:
                self._table = self._load_table()
            return self._table

    def get(self, kind: str, text: str) -> "CompiledGrammar":
        """Raises GrammarError; ConfigError if the tokenizer cannot be read.

        Two threads that ask for the same new grammar at once may both compile it.
        """
        key = (kind, text)
        with self._lock:
            found = self._entries.get(key)
            if found is not None and not found.worn_out:
                self._entries.move_to_end(key)
                return found
        table = self.table()
        from tiercel.guidance.constraints import compile_grammar

        compiled = compile_grammar(table, kind, text)
        with self._lock:
            self._entries[key] = compiled
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries or self._bytes() > self._max_bytes:
                self._entries.popitem(last=False)
        return compiled

    def _bytes(self) -> int:
        return sum(each.estimated_bytes for each in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def estimated_bytes(self) -> int:
        """Of all grammars that are kept."""
        with self._lock:
            return self._bytes()
