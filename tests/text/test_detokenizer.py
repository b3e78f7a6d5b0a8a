"""The stream of token texts against decoding everything at once, over whole vocabularies."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.vocabularies import change_json, falcon_style, with_byte_fallback
from tiercel.text.detokenizer import REPLACEMENT, Detokenizer
from tiercel.text.tokenizer import Tokenizer

EYAS = Path(__file__).parents[2] / "server" / "tiercel" / "eyas"


@pytest.fixture(scope="module", params=["falcon", "eyas", "byte fallback"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "eyas":
        return Tokenizer.load(EYAS)
    made = falcon_style(folder) if request.param == "falcon" else with_byte_fallback(folder)
    return Tokenizer.load(made)


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(falcon_style(tmp_path_factory.mktemp("falcon")))


def windowed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The contract's rule as it stands: a window decoded with and without the new token."""
    texts, start, read = [], 0, 0
    for end in range(1, len(ids) + 1):
        before = tokenizer.decode(ids[start:read], skip_special_tokens=False)
        now = tokenizer.decode(ids[start:end], skip_special_tokens=False)
        if len(now) > len(before) and not now.endswith(REPLACEMENT):
            texts.append(now[len(before) :])
            start, read = read, end
        else:
            texts.append("")
    return texts


def check(tokenizer: Tokenizer, ids: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.push(id) for id in ids]
    assert texts == windowed(tokenizer, ids)
    stream = "".join(texts) + detokenizer.flush()
    if tokenizer.byte_level:
        whole = tokenizer.decode(ids, skip_special_tokens=False)
        # Equal; only a last character that is incomplete is missing. Two marks are one such: the
        # library takes ED A0 for two wrong bytes at once, Python waits for the third.
        assert whole in (stream, stream + REPLACEMENT, stream + 2 * REPLACEMENT)
    assert not any(text.endswith(REPLACEMENT) for text in texts)
    answer = detokenizer.generated_text()
    shown = tokenizer.decode(ids, skip_special_tokens=True)
    assert answer == shown or (shown.endswith(REPLACEMENT) and answer == shown[: len(answer)])
    assert answer.rstrip(REPLACEMENT) == shown.rstrip(REPLACEMENT)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_ids_of_the_whole_vocabulary(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also ids that have no token, as a padded head may give."""
    check(tokenizer, data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bytes_that_are_often_parts_of_characters(falcon: Tokenizer, data: st.DataObject) -> None:
    single = {falcon.token_bytes(id): id for id in range(falcon.vocab_size)}
    byte = st.sampled_from([0x61, 0x80, 0xA9, 0xBD, 0xBF, 0xC3, 0xE6, 0xED, 0xEF, 0xF0, 0x9F, 0xFF])
    ids = [single[bytes([each])] for each in data.draw(st.lists(byte, max_size=24))]
    check(falcon, ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_real_text_streams_without_loss(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    check(tokenizer, ids)
    detokenizer = Detokenizer(tokenizer)
    stream = "".join([detokenizer.push(id) for id in ids] + [detokenizer.flush()])
    assert stream == tokenizer.decode(ids, skip_special_tokens=False)


def test_every_id_after_every_kind_of_neighbour(tokenizer: Tokenizer) -> None:
    """The whole vocabulary in one go, forwards and backwards."""
    ids = list(range(tokenizer.vocab_size))
    check(tokenizer, ids)
    check(tokenizer, ids[::-1])


def test_an_emoji_of_four_tokens(falcon: Tokenizer) -> None:
    ids = falcon.encode("𝄞!")
    detokenizer = Detokenizer(falcon)
    assert [detokenizer.push(id) for id in ids] == ["", "", "", "𝄞", "!"]


def test_impossible_bytes_come_with_the_next_token(falcon: Tokenizer) -> None:
    single = {falcon.token_bytes(id): id for id in range(falcon.vocab_size)}
    detokenizer = Detokenizer(falcon)
    assert detokenizer.push(single[b"\xff"]) == ""
    assert detokenizer.push(single[b"\xe6"]) == ""
    assert detokenizer.push(single[b"a"]) == "��a"
    assert detokenizer.push(11) == "<|endoftext|>"
    assert detokenizer.generated_text() == "��a"


def test_an_answer_cut_inside_a_character_keeps_the_rest(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a bc 𝄞")
    detokenizer = Detokenizer(tokenizer)
    stream = "".join(detokenizer.push(id) for id in ids[:-1])
    assert stream == "a bc "
    assert detokenizer.flush() == ""
    assert detokenizer.generated_text() == "a bc "


def test_special_tokens_are_in_the_stream_and_not_in_the_answer(tokenizer: Tokenizer) -> None:
    eos = tokenizer.eos_token_ids[0]
    ids = [*tokenizer.encode("a bc"), eos]
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.push(id) for id in ids) == "a bc" + tokenizer.token_text(eos)
    assert detokenizer.generated_text() == "a bc"


def test_clean_up_of_spaces_streams_as_the_rule_says(tmp_path: Path) -> None:
    change_json(falcon_style(tmp_path) / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("the end , the start")
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(id) for id in ids] == windowed(tokenizer, ids)
    assert detokenizer.generated_text() == "the end, the start"


def test_the_cost_of_a_token_does_not_grow(falcon: Tokenizer) -> None:
    """What is kept between tokens is bounded, also while bytes never form a character."""
    single = {falcon.token_bytes(id): id for id in range(falcon.vocab_size)}
    detokenizer = Detokenizer(falcon)
    for _ in range(20_000):
        assert detokenizer.push(single[b"\xff"]) == ""
    assert detokenizer.push(single[b"a"]) == REPLACEMENT * 20_000 + "a"
