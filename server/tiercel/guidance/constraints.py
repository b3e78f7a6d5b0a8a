"""llguidance behind the Grammar protocol: tokenizer, compiling, limits. README.md says why it.

Importing this module imports the library; engines without it never do, unless a grammar arrives.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import llguidance
import numpy as np

from tiercel.guidance.grammar import GrammarError, Words
from tiercel.guidance.schema import prepare_schema
from tiercel.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_REGEX_CHARACTERS = 32_768

# A state of the lexer takes about 1 kB. What a mask may cost is bounded by fuel, not by a clock:
# 200,000 units are some 15 ms, and the same grammar is refused everywhere or nowhere.
_MAX_LEXER_STATES = 16_384
_LIMITS = llguidance.LLParserLimits(
    max_lexer_states=_MAX_LEXER_STATES,
    max_grammar_size=200_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    initial_lexer_fuel=1_000_000,
    verbose_errors=False,
)
# One optional space where Python's json.dumps has one. A weak model given more loses itself in it.
_JSON_STYLE: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}
# Tokens that are looked at together where a whole slice is allowed. With these, masks of JSON take
# half as long as with the library's own {1,10} and {1,30}: strings often have a small maxLength.
_IN_STRING = r'[^"\\\x00-\x1F\x7F]'
_SLICES = [
    r"[\x20\x0A\x0D\x09]+",
    *(f"{_IN_STRING}{{1,{count}}}" for count in (5, 10, 20, 30)),
    f"{_IN_STRING}+",
]
_COMPLEX = "it is too complex"
_ANCHORS = "lookarounds not supported yet"
_GROWTH_BYTES_PER_S = 100 << 20  # see README.md: memory that masks build, by the time they take
_COMPILED_BYTES = 256 << 10


class TokenTable:
    """The library's view of one model's tokens. Made once per process; threads may share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises GrammarError for a tokenizer without an end-of-sequence token."""
        if not tokenizer.eos_token_ids:
            raise GrammarError("the model has no end-of-sequence token, so no grammar can end")
        self.tokenizer = llguidance.LLTokenizer(
            tokenizer.definition(), eos_token=list(tokenizer.eos_token_ids), slices=_SLICES
        )
        self.words = -(-self.tokenizer.vocab_size // 32)
        ends = np.zeros(self.words * 32, dtype=np.uint8)
        ends[list(tokenizer.eos_token_ids)] = 1
        self.end_words: Words = np.packbits(ends, bitorder="little").view(np.int32)

    @classmethod
    def load(cls, folder: Path | str) -> "TokenTable":
        """Of a model's folder. Raises GrammarError, and ConfigError where there is no tokenizer."""
        return cls(Tokenizer.load(folder))


class Constraint:
    """One sequence under a compiled grammar. See Grammar."""

    def __init__(self, compiled: "CompiledGrammar") -> None:
        self._compiled = compiled
        self._matcher = compiled.matcher()
        self._tokens: list[int] = []

    def advance(self, token_id: int) -> None:
        """See Grammar. The library never sees the end of sequence: taking it back would not do."""
        if token_id in self._compiled.eos_token_ids:
            if not (self._ended or self._matcher.is_accepting()):
                raise GrammarError("the text ends before the grammar is complete")
        elif self._ended or not self._consume(token_id):
            why = sentence(self._matcher.get_error())
            if _COMPLEX not in why:
                why = f"the grammar does not allow token {token_id} here"
            raise GrammarError(why)
        self._tokens.append(token_id)

    def rollback(self, count: int) -> None:
        """See Grammar."""
        if not 0 <= count <= len(self._tokens):
            raise GrammarError(f"cannot take back {count} of {len(self._tokens)} tokens")
        kept = len(self._tokens) - count
        ends = sum(token in self._compiled.eos_token_ids for token in self._tokens[kept:])
        del self._tokens[kept:]
        if count > ends and not self._matcher.rollback(count - ends):
            self._replay()

    def fill_mask(self, words: Words) -> None:
        """See Grammar. Words beyond the tokenizer's are cleared."""
        table = self._compiled.table
        target = words[: table.words]
        words[table.words :] = 0
        if len(target) < table.words:  # more tokens than the model has logits
            target = np.empty(table.words, dtype=np.int32)
        if self._ended:
            target[:] = table.end_words
        else:
            began = time.thread_time()
            self._fill(target)
            self._compiled.spent_s += time.thread_time() - began
        if len(words) < table.words:
            words[:] = target[: len(words)]

    @property
    def _ended(self) -> bool:
        return bool(self._tokens) and self._tokens[-1] in self._compiled.eos_token_ids

    def _consume(self, token_id: int) -> bool:
        if self._matcher.consume_token(token_id):
            return True
        self._replay()
        return self._matcher.consume_token(token_id)

    def _fill(self, words: Words) -> None:
        try:
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            if not self._matcher.is_error():
                return
        except ValueError:  # this is how the first mask over a limit fails
            pass
        self._replay()
        try:
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        except ValueError as error:
            raise GrammarError(sentence(str(error))) from None
        if self._matcher.is_error():
            raise GrammarError(sentence(self._matcher.get_error()))

    def _replay(self) -> None:
        """Start again alone: copies share a lexer, and another one may have met its limits."""
        self._compiled.worn_out = True
        self._compiled = compile_grammar(
            self._compiled.table, self._compiled.kind, self._compiled.text
        )
        self._matcher = self._compiled.matcher()
        text = [each for each in self._tokens if each not in self._compiled.eos_token_ids]
        if not self._matcher.consume_tokens(text):
            raise GrammarError(sentence(self._matcher.get_error()))


class CompiledGrammar:
    """A grammar ready to be copied for sequences."""

    def __init__(
        self, table: TokenTable, kind: str, text: str, matcher: llguidance.LLMatcher
    ) -> None:
        self.table, self.kind, self.text = table, kind, text
        self.eos_token_ids = frozenset(table.tokenizer.eos_tokens)
        self.worn_out = False  # a copy of it met a limit: do not make more
        self.spent_s = 0.0  # of computing masks for its copies
        self._matcher = matcher

    def matcher(self) -> llguidance.LLMatcher:
        """The library's state at the beginning of the text."""
        return self._matcher.deep_copy()

    def constraint(self) -> Constraint:
        """A new sequence under this grammar."""
        return Constraint(self)

    @property
    def estimated_bytes(self) -> int:
        """What it takes with its text, and with the states that its copies have built so far."""
        grown = min(self.spent_s * _GROWTH_BYTES_PER_S, _MAX_LEXER_STATES * 1024)
        return _COMPILED_BYTES + 8 * len(self.text) + int(grown)


def compile_grammar(table: TokenTable, kind: str, text: str) -> CompiledGrammar:
    """A grammar of the wire, ready. Raises GrammarError for one that is not valid or too large.

    Takes milliseconds for what `check_grammar` has passed; may take minutes for anything else.
    """
    if kind == "regex":
        if len(text) > MAX_REGEX_CHARACTERS:
            raise GrammarError(
                f"the expression has {len(text)} characters; at most {MAX_REGEX_CHARACTERS} are "
                "allowed"
            )
        grammar = llguidance.LLMatcher.grammar_from_regex(text)
    elif kind == "json_schema":
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                prepare_schema(text), overrides=_JSON_STYLE
            )
        except GrammarError:
            raise
        except ValueError as error:
            raise GrammarError(sentence(str(error))) from None
    else:
        raise GrammarError(f"there are no grammars of kind {kind!r}")
    matcher = llguidance.LLMatcher(table.tokenizer, grammar, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise GrammarError(sentence(matcher.get_error()))
    return CompiledGrammar(table, kind, text, matcher)


def sentence(message: str) -> str:
    """What the library says, for people: one line, with a remedy where one is known."""
    if _ANCHORS in message:
        return (
            "the expression has an anchor or word boundary inside; an expression always matches "
            "the whole text, so leave ^, $ and \\b out"
        )
    if "look-around" in message or "lookaround" in message:
        return "the expression has a look-around, which is not supported; rewrite it without"
    lines = [line.strip() for line in message.split("<")[0].splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return f"the expression is wrong: {errors[-1]}"
    text = lines[0] if lines else "it cannot be compiled"
    if text.startswith("NoExtension"):
        return "no text can match it"
    if any(
        word in text for word in ("too many", "Too many", "too large", "limit", "fuel", "max is")
    ):
        return f"{_COMPLEX} ({text}); use fewer alternatives and smaller counts"
    return text
