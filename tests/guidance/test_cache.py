"""GrammarCache: one compilation per grammar, bounds in number and bytes, worn-out grammars."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.vocabularies import falcon_style
from tiercel.errors import ConfigError
from tiercel.guidance.cache import MAX_BYTES, MAX_ENTRIES, GrammarCache
from tiercel.guidance.grammar import GrammarError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return falcon_style(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def make(folder: Path) -> Callable[..., GrammarCache]:
    table = GrammarCache.of_model(folder).table()
    return lambda **bounds: GrammarCache(lambda: table, **bounds)


def test_a_grammar_is_compiled_once(make: Callable[..., GrammarCache]) -> None:
    cache = make()
    first = cache.get("regex", "[ab]+")
    assert cache.get("regex", "[ab]+") is first
    assert cache.get("regex", "[ab]*") is not first
    assert len(cache) == 2


def test_copies_do_not_disturb_each_other(make: Callable[..., GrammarCache]) -> None:
    compiled = make().get("regex", "ab|ba")
    masks = []
    for token in "ab":
        state = compiled.constraint()
        state.advance(compiled.table.tokenizer.tokenize_str(token)[0])
        masks.append(np.zeros(compiled.table.words, dtype=np.int32))
        state.fill_mask(masks[-1])
    assert (masks[0] != masks[1]).any()


def test_a_thousand_grammars_stay_within_the_bounds(make: Callable[..., GrammarCache]) -> None:
    cache = make()
    for number in range(1_000):
        cache.get("regex", f"x{number}|[a-z]{{2,9}}")
        assert len(cache) <= MAX_ENTRIES
        assert cache.estimated_bytes <= MAX_BYTES
    assert len(cache) == MAX_ENTRIES
    last = cache.get("regex", "x999|[a-z]{2,9}")
    assert cache.get("regex", "x999|[a-z]{2,9}") is last


def test_the_least_recent_goes_first(make: Callable[..., GrammarCache]) -> None:
    cache = make(max_entries=2)
    a, b = cache.get("regex", "a"), cache.get("regex", "b")
    assert cache.get("regex", "a") is a
    cache.get("regex", "c")
    assert cache.get("regex", "a") is a
    assert cache.get("regex", "b") is not b


def test_bytes_count_too(make: Callable[..., GrammarCache]) -> None:
    cache = make()
    text = "a" * 30_000
    single = cache.get("regex", text).estimated_bytes
    assert single > len(text)
    small = make(max_bytes=3 * single)
    for number in range(9):
        small.get("regex", text[number:])
    assert 1 <= len(small) <= 3


def test_masks_make_an_entry_heavier(make: Callable[..., GrammarCache]) -> None:
    compiled = make().get("regex", "(a|b)*a(a|b){50}")
    before = compiled.estimated_bytes
    state, words = compiled.constraint(), np.zeros(compiled.table.words, dtype=np.int32)
    for _ in range(100):
        state.fill_mask(words)
        state.advance(compiled.table.tokenizer.tokenize_str("a")[0])
    assert compiled.estimated_bytes > before


def test_what_wore_out_is_compiled_again(make: Callable[..., GrammarCache]) -> None:
    cache = make()
    first = cache.get("regex", "[ab]+")
    first.worn_out = True
    assert cache.get("regex", "[ab]+") is not first
    assert len(cache) == 1


def test_errors_are_not_kept(make: Callable[..., GrammarCache]) -> None:
    cache = make()
    for _ in range(2):
        with pytest.raises(GrammarError):
            cache.get("regex", "(")
    assert len(cache) == 0


def test_a_folder_without_a_tokenizer_fails_when_asked(tmp_path: Path) -> None:
    cache = GrammarCache.of_model(tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is missing"):
        cache.get("regex", "a")
