"""Masks against all texts that can match, and the protocol: advance, rollback, end of sequence."""

import itertools
import json
import re
from collections.abc import Callable

import numpy as np
import pytest

from support.vocabularies import falcon_style
from tiercel.guidance.constraints import Constraint, TokenTable, compile_grammar
from tiercel.guidance.grammar import AnyText, GrammarError
from tiercel.text.tokenizer import Tokenizer

END = 11


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(falcon_style(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def table(tokenizer: Tokenizer) -> TokenTable:
    return TokenTable(tokenizer)


@pytest.fixture
def start(table: TokenTable) -> Callable[[str], Constraint]:
    return lambda pattern: compile_grammar(table, "regex", pattern).constraint()


def allowed(state: Constraint, vocab: int) -> set[int]:
    words = np.full(-(-vocab // 32), -1, dtype=np.int32)
    state.fill_mask(words)
    bits = np.unpackbits(words.view(np.uint8), count=vocab, bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def words_of(letters: str, longest: int) -> list[str]:
    """All texts of these letters up to a length."""
    lengths = range(longest + 1)
    return ["".join(each) for n in lengths for each in itertools.product(letters, repeat=n)]


FINITE = {  # patterns with few matches, and texts that hold them all
    r"[ab]{3}": words_of("ab", 4),
    r"a(b|c){1,2}a?": words_of("abc", 5),
    r"(ab|ba){1,3}|c": words_of("abc", 7),
    r"(é|漢|😀){1,2}": words_of("é漢😀", 3),
    r"(?i)th": words_of("tThH", 3),
    r"\$a\^|\.": words_of("$a^.", 4),
    r"^the( end)?,?$": ["the", "the end", "the,", "the end,", "the end, "],
    r"": ["", "a"],
}


@pytest.mark.parametrize("pattern", FINITE)
def test_only_tokens_that_keep_a_match_possible(
    pattern: str, tokenizer: Tokenizer, start: Callable[[str], Constraint]
) -> None:
    matches = [text.encode() for text in FINITE[pattern] if re.fullmatch(pattern, text)]
    pieces = {
        id: tokenizer.token_bytes(id)
        for id in range(tokenizer.vocab_size)
        if tokenizer.token_bytes(id) and not tokenizer.is_special(id)
    }
    pending: list[tuple[list[int], bytes]] = [([], b"")]
    checked = 0
    while pending and checked < 80:
        ids, prefix = pending.pop(0)
        state = start(pattern)
        for id in ids:
            state.advance(id)
        expected = {
            id
            for id, piece in pieces.items()
            if any(match.startswith(prefix + piece) for match in matches)
        }
        pending += [([*ids, id], prefix + pieces[id]) for id in expected]
        if prefix in matches:
            expected.add(END)
        found = allowed(state, tokenizer.vocab_size)
        assert found, prefix
        assert found <= expected, prefix
        following = {
            text[len(prefix) : len(prefix) + 1] for text in matches if text.startswith(prefix)
        }
        if len(following) > 1:  # where the text is forced, so is its usual tokenization
            assert found == expected, prefix
        checked += 1
    assert matches
    assert checked > len(pattern) // 4


def test_json_is_compact_or_as_python_writes_it(tokenizer: Tokenizer, table: TokenTable) -> None:
    schema = {
        "properties": {"b": {"type": "integer"}, "a": {"items": {"type": "boolean"}}},
        "required": ["b", "a"],
    }
    compiled = compile_grammar(table, "json_schema", json.dumps(schema))

    def fits(text: str) -> bool:
        state = compiled.constraint()
        try:
            for id in tokenizer.encode(text):
                state.advance(id)
            state.advance(END)
        except GrammarError:
            return False
        return True

    value = {"b": 12, "a": [True, False]}
    assert fits(json.dumps(value))
    assert fits(json.dumps(value, separators=(",", ":")))
    assert not fits(json.dumps({"a": [True], "b": 12}))  # the schema's order
    assert not fits(json.dumps(value, indent=1))
    assert not fits(json.dumps({**value, "c": 1}))
    assert not fits(json.dumps({"b": 12}))
    assert not fits(json.dumps(value) + " ")


def test_only_the_end_is_allowed_once_complete(
    tokenizer: Tokenizer, start: Callable[[str], Constraint]
) -> None:
    state = start("[ab]{2}")
    for id in tokenizer.encode("ab"):
        state.advance(id)
    assert allowed(state, tokenizer.vocab_size) == {END}
    for _ in range(2):
        state.advance(END)
        assert allowed(state, tokenizer.vocab_size) == {END}
    with pytest.raises(GrammarError, match="does not allow"):
        state.advance(tokenizer.encode("a")[0])


def test_a_forbidden_token_is_an_error_and_changes_nothing(
    tokenizer: Tokenizer, start: Callable[[str], Constraint]
) -> None:
    state = start("[ab]{4}")
    before = allowed(state, tokenizer.vocab_size)
    with pytest.raises(GrammarError, match="does not allow token"):
        state.advance(tokenizer.encode("c")[0])
    with pytest.raises(GrammarError, match="before the grammar is complete"):
        state.advance(END)
    assert allowed(state, tokenizer.vocab_size) == before


def test_rollback_goes_back_exactly(
    tokenizer: Tokenizer, start: Callable[[str], Constraint]
) -> None:
    state = start("(the|end| )+")
    seen = [allowed(state, tokenizer.vocab_size)]
    ids = [*tokenizer.encode("the end the end"), END]
    for id in ids:
        state.advance(id)
        seen.append(allowed(state, tokenizer.vocab_size))
    for count in (0, 1, 2, len(ids) - 3):
        state.rollback(count)
        del seen[len(seen) - count :]
        assert allowed(state, tokenizer.vocab_size) == seen[-1]
    for id in ids:
        state.advance(id)
    state.rollback(len(ids))
    assert allowed(state, tokenizer.vocab_size) == seen[0]
    with pytest.raises(GrammarError, match="cannot take back 1 of 0"):
        state.rollback(1)


@pytest.mark.parametrize("extra", [-100, -3, 0, 1, 40, 64])
def test_masks_of_any_width(
    extra: int, tokenizer: Tokenizer, start: Callable[[str], Constraint]
) -> None:
    width = tokenizer.vocab_size + extra
    anything = allowed(start("(.|\n)*"), width)
    whole = allowed(start("(.|\n)*"), tokenizer.vocab_size)
    assert anything == {id for id in whole if id < width}
    assert not anything & set(range(11))  # special tokens are no text


def test_no_grammar_allows_everything() -> None:
    words = np.zeros(4, dtype=np.int32)
    nothing = AnyText()
    nothing.advance(5)
    nothing.rollback(1)
    nothing.fill_mask(words)
    assert (words == -1).all()


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regex", "(", "unclosed group"),
        ("regex", "a\\bb", "leave \\^, \\$ and"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "a" * 32_769, "at most 32768"),
        (
            "json_schema",
            '{"properties": {"a": {"type": "string", "pattern": "(?!x)"}}}',
            "look-aro",
        ),
        ("json_schema", '{"$ref": "http://example.com/schema"}', "not present"),
        ("json_schema", '{"properties": {"a": false}, "required": ["a"]}', "nsatisfiable"),
        ("lark", "start: 'a'", "no grammars of kind 'lark'"),
    ],
)
def test_what_cannot_be_compiled_is_a_sentence(
    kind: str, text: str, message: str, table: TokenTable
) -> None:
    with pytest.raises(GrammarError, match=message) as caught:
        compile_grammar(table, kind, text)
    assert "\n" not in str(caught.value)


def test_a_sequence_outlives_limits_that_another_one_met(
    tokenizer: Tokenizer, table: TokenTable
) -> None:
    compiled = compile_grammar(table, "regex", "(x{1,1000}){1,1000}|(the end ?)+")
    calm = compiled.constraint()
    ids = tokenizer.encode("the end the")
    calm.advance(ids[0])
    greedy = compiled.constraint()
    with pytest.raises(GrammarError, match="too complex"):
        for _ in range(400):
            allowed(greedy, tokenizer.vocab_size)
            greedy.advance(tokenizer.encode("x")[0])
    assert compiled.worn_out
    for id in ids[1:]:
        assert id in allowed(calm, tokenizer.vocab_size)
        calm.advance(id)
