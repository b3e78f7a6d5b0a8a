"""check_grammar: whether a grammar is valid and cheap enough. A job for a child that can be killed.

It compiles as the engine will and walks a little: what passes is known not to stall the engine.
"""

import random
import time
from collections.abc import Callable

import jsonschema
import numpy as np

from tiercel.guidance.constraints import CompiledGrammar, Constraint, TokenTable, compile_grammar
from tiercel.guidance.grammar import GrammarError, Words
from tiercel.guidance.schema import parse_schema, too_deep
from tiercel.sandbox.errors import JobRefused

# Seconds of one core. The engine compiles beside its steps, but masks are computed within them.
MAX_COMPILE_S = 1.0
MAX_MASK_S = 0.1
MAX_WALKS_S = 1.0  # 1.5 ms for each mask; the median of a usual one is 0.02 to 0.1
WALK_TOKENS = 160
ALL_TOKENS = 640
MAX_WALKS = 32  # short ones; half of them may miss what is optional

_Choice = Callable[[Words], int]  # of an id from a mask that allows one


def check_grammar(model_path: str) -> Callable[[list[str]], None]:
    """Prepare for the tokenizer of a model's folder; returns what checks one [kind, text].

    That answers None for a grammar that the engine can use and raises JobRefused for any other.
    """
    table = TokenTable.load(model_path)
    _check_valid('{"properties": {}}')  # reads the meta-schema from its files

    def check(payload: list[str]) -> None:
        kind, text = payload
        try:
            check_with(table, kind, text)
        except GrammarError as error:
            raise JobRefused("grammar", str(error)) from None

    return check


def check_with(table: TokenTable, kind: str, text: str) -> None:
    """Raises GrammarError, with a sentence, for a grammar that is not valid or costs too much."""
    if kind == "json_schema":
        _check_valid(text)
    began = time.thread_time()
    compiled = compile_grammar(table, kind, text)
    if time.thread_time() - began > MAX_COMPILE_S:
        raise _too_slow()
    clock = _Clock()
    chance = random.Random(0)

    def random_one(allowed: Words) -> int:
        word, bits = _word(allowed, chance.choice(np.flatnonzero(allowed)))
        return word + chance.choice([bit for bit in range(32) if bits >> bit & 1])

    left = ALL_TOKENS
    for number in range(MAX_WALKS):
        choose = (_last, _first)[number] if number < 2 else random_one
        left -= _walk(compiled, choose, clock)
        if left < 0:
            return


class _Clock:
    """The time that masks take: each of them, and all together."""

    def __init__(self) -> None:
        self._left_s = MAX_WALKS_S

    def fill_mask(self, sequence: Constraint, words: Words) -> None:
        """Raises GrammarError when that took too long."""
        began = time.thread_time()
        sequence.fill_mask(words)
        took = time.thread_time() - began
        self._left_s -= took
        if took > MAX_MASK_S or self._left_s < 0:
            raise _too_slow()


def _walk(compiled: CompiledGrammar, choose: _Choice, clock: _Clock) -> int:
    """Generate a little with tokens that are allowed; how many there were."""
    sequence = compiled.constraint()
    words: Words = np.zeros(compiled.table.words, dtype=np.int32)
    for count in range(WALK_TOKENS):
        clock.fill_mask(sequence, words)
        if not words.any():
            raise GrammarError("no text can match it")
        words &= ~compiled.table.end_words
        if not words.any():
            return count
        sequence.advance(choose(words))
    return WALK_TOKENS


def _first(allowed: Words) -> int:
    """Low ids are short tokens."""
    word, bits = _word(allowed, np.flatnonzero(allowed)[0])
    return word + (bits & -bits).bit_length() - 1


def _last(allowed: Words) -> int:
    """High ids are long tokens."""
    word, bits = _word(allowed, np.flatnonzero(allowed)[-1])
    return word + bits.bit_length() - 1


def _word(allowed: Words, index: np.intp) -> tuple[int, int]:
    """The first id of a word of a mask, and the word's bits."""
    return 32 * int(index), int(allowed[index]) & 0xFFFF_FFFF


def _check_valid(text: str) -> None:
    """Raises GrammarError unless the text is a JSON schema of draft 2020-12."""
    schema = parse_schema(text)
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise GrammarError(f"the schema is wrong at {error.json_path}: {error.message}") from None
    except RecursionError:
        raise too_deep() from None


def _too_slow() -> GrammarError:
    return GrammarError("it is too costly; use smaller counts, fewer alternatives or shorter texts")
