"""RowMasks: masks of rows, computed on a thread; a row that fails does so alone."""

from pathlib import Path

import numpy as np
import pytest

from support.vocabularies import falcon_style
from tiercel.guidance.cache import GrammarCache
from tiercel.guidance.grammar import GrammarError
from tiercel.guidance.rows import RowMasks
from tiercel.text.tokenizer import Tokenizer
from tiercel.wire.request import Grammar

END = 11
AB = Grammar("regex", "[ab]{4}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return falcon_style(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture
def masks(folder: Path) -> RowMasks:
    return RowMasks(GrammarCache.of_model(folder), 4, 1_000)


def ids(masks: RowMasks, row: int) -> set[int]:
    (packed,) = masks.allowed([row])
    return set(np.flatnonzero(np.unpackbits(packed, bitorder="little")).tolist())


def test_rows_go_on_by_themselves(masks: RowMasks, tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    for row in (0, 2):
        masks.start(row, AB, [])
    masks.start(1, None, [])
    assert [masks.constrains(row) for row in range(4)] == [True, False, True, False]
    assert {a, b} <= ids(masks, 0) == ids(masks, 2)
    for _ in range(4):
        masks.advance([0, 1], [a, 500])
    assert ids(masks, 0) == {END}
    assert {a, b} <= ids(masks, 2)
    masks.advance([0], [END])
    assert ids(masks, 0) == {END}


def test_a_resumed_row_is_where_it_was(masks: RowMasks, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("ab")
    grammar = Grammar("regex", "ab(c|d)|e")
    masks.start(0, grammar, [])
    for token in tokens:
        masks.advance([0], [token])
    masks.start(1, grammar, tokens)
    assert ids(masks, 0) == ids(masks, 1) != set()
    masks.start(0, grammar, [])
    assert ids(masks, 0) != ids(masks, 1)


def test_a_row_without_grammar_forgets_the_one_before(masks: RowMasks) -> None:
    masks.start(0, AB, [])
    masks.advance([0], [300])
    masks.start(0, None, [])
    assert not masks.constrains(0)
    masks.advance([0], [300])
    masks.start(0, AB, [])
    assert END not in ids(masks, 0)


@pytest.mark.parametrize("bad", [Grammar("regex", "("), Grammar("lark", "x")])
def test_a_grammar_that_breaks_is_the_rows_own_matter(masks: RowMasks, bad: Grammar) -> None:
    masks.start(0, bad, [])
    masks.start(1, AB, [])
    with pytest.raises(GrammarError, match="cannot go on"):
        masks.allowed([0, 1])
    assert ids(masks, 1)
    masks.advance([0, 1], [5, next(iter(ids(masks, 1)))])
    assert ids(masks, 1)
    masks.start(0, AB, [])
    assert ids(masks, 0)


def test_a_token_that_the_grammar_forbids_fails_the_row(
    masks: RowMasks, tokenizer: Tokenizer
) -> None:
    masks.start(0, AB, [])
    masks.start(1, AB, [])
    masks.advance([0, 1], [tokenizer.encode("c")[0], tokenizer.encode("a")[0]])
    with pytest.raises(GrammarError, match="does not allow token"):
        masks.allowed([0])
    assert ids(masks, 1)
