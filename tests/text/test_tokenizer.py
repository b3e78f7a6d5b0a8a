"""The tokenizer against the library it wraps, its files, and what they may lack."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from support.vocabularies import change_json, drop_letter, falcon_style, with_byte_fallback
from tiercel.errors import ConfigError
from tiercel.text.byte_level import ALPHABET, token_bytes
from tiercel.text.tokenizer import TextToken, Tokenizer, lone_surrogate

EYAS = Path(__file__).parents[2] / "server" / "tiercel" / "eyas"


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(falcon_style(tmp_path_factory.mktemp("falcon")))


def test_the_alphabet_is_the_librarys() -> None:
    assert set(ALPHABET) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(ALPHABET.values()) == list(range(256))
    assert token_bytes("Ġthe") == b" the"
    assert token_bytes("two words") == b"two words"


@given(st.text())
def test_round_trip(falcon: Tokenizer, text: str) -> None:
    ids = falcon.encode(text)
    assert falcon.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= id < falcon.vocab_size for id in ids)


def test_bytes_that_no_token_stands_for_are_known(falcon: Tokenizer, tmp_path: Path) -> None:
    assert falcon.lost_bytes == []
    assert Tokenizer.load(EYAS).lost_bytes == []
    drop_letter(falcon_style(tmp_path), "Q")
    drop_letter(tmp_path, "ÿ")  # byte 0xFF is in no text
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.lost_bytes == [ord("Q")]
    assert tokenizer.decode(tokenizer.encode("a Question")) == "a uestion"
    change_json(tmp_path / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    assert Tokenizer.load(tmp_path).lost_bytes == [ord("Q")]


def test_bytes_with_an_unknown_token_are_not_lost(tmp_path: Path) -> None:
    drop_letter(falcon_style(tmp_path), "Q", unk_token="the")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a Question")) == "a theuestion"
    assert tokenizer.lost_bytes == []


def test_token_texts_are_those_of_decode(falcon: Tokenizer) -> None:
    for id in range(falcon.vocab_size):
        assert falcon.token_text(id) == falcon.decode([id], skip_special_tokens=False)


def test_ids_outside_the_vocabulary_are_nothing(falcon: Tokenizer) -> None:
    assert falcon.decode([falcon.vocab_size, 99_999]) == ""
    assert falcon.token_text(99_999) == ""
    assert falcon.token_bytes(-1) == b""
    assert not falcon.is_special(99_999)


def test_special_tokens_of_falcon(falcon: Tokenizer) -> None:
    assert [id for id in range(falcon.vocab_size) if falcon.is_special(id)] == list(range(12))
    assert falcon.eos_token_ids == (11,)
    assert falcon.encode("a<|endoftext|>b")[1] == 11
    assert falcon.decode(falcon.encode("a<|endoftext|>b")) == "ab"


@given(st.text(st.sampled_from("aé漢😀\u0301\u00a0 \nß�z")))
def test_offsets_are_bytes_and_cover_the_input(falcon: Tokenizer, text: str) -> None:
    data = text.encode()
    tokens = list(falcon.encode_lazily(text))
    assert [token.id for token in tokens] == falcon.encode(text)
    covered = 0
    for token in tokens:
        assert data[token.start : token.stop].decode() == token.text
        assert token.start <= covered <= token.stop
        covered = token.stop
    assert covered == len(data)


def test_parts_of_a_character_share_its_span(falcon: Tokenizer) -> None:
    tokens = list(falcon.encode_lazily("a𝄞b"))
    assert len(tokens) == 6
    assert {(token.text, token.start, token.stop) for token in tokens[1:5]} == {("𝄞", 1, 5)}
    assert tokens[5] == TextToken(tokens[5].id, "b", 5, 6)


def test_special_tokens_are_added_as_the_post_processor_says(tmp_path: Path) -> None:
    falcon_style(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 11)]
    )
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    plain = tokenizer.encode("the start", add_special_tokens=False)
    # The file's truncation and padding belong to training.
    assert len(plain) == 2
    assert tokenizer.encode("the start") == [11, *plain]
    assert next(tokenizer.encode_lazily("the")) == TextToken(11, "", 0, 0)


def test_encoding_in_threads(falcon: Tokenizer) -> None:
    texts = [f"naïve café {i} 漢字 😀" * 50 for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(falcon.encode, texts)) == [falcon.encode(text) for text in texts]


def test_lone_surrogates_are_refused_and_found(falcon: Tokenizer) -> None:
    assert lone_surrogate("fine 😀") is None
    assert lone_surrogate("ab\ud83d") == 2
    for encode in (falcon.encode, falcon.encode_lazily):
        with pytest.raises(ValueError, match="index 2 is half of a surrogate pair"):
            encode("ab\ude00")


@pytest.mark.parametrize(
    ("tokenizer_eos", "generation_eos", "config_eos", "expected"),
    [
        ("<|endoftext|>", None, None, (11,)),
        ({"content": ">>ANSWER<<"}, None, 9, (5,)),
        ("<|endoftext|>", 5, None, (11,)),  # one id only: the tokenizer's own counts
        ("<|endoftext|>", [5, 11, 5], None, (5, 11)),
        (None, 5, 7, (5,)),
        (None, None, [7, 8], (7, 8)),
        ("no such token", None, 7, (7,)),
        (None, None, None, ()),
    ],
)
def test_end_of_sequence_ids(
    tmp_path: Path,
    tokenizer_eos: object,
    generation_eos: object,
    config_eos: object,
    expected: tuple[int, ...],
) -> None:
    falcon_style(tmp_path)
    change_json(tmp_path / "tokenizer_config.json", eos_token=tokenizer_eos)
    change_json(tmp_path / "generation_config.json", eos_token_id=generation_eos)
    change_json(tmp_path / "config.json", eos_token_id=config_eos)
    assert Tokenizer.load(tmp_path).eos_token_ids == expected


def test_the_tokens_map_names_tokens_too(tmp_path: Path) -> None:
    falcon_style(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    change_json(
        tmp_path / "special_tokens_map.json",
        eos_token=">>PREFIX<<",
        additional_special_tokens=["<plain>", {"content": "déjà"}, "not in the vocabulary"],
    )
    plain = Tokenizer.load(tmp_path)
    size = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size()
    assert plain.eos_token_ids == (8,)
    assert plain.is_special(plain.encode("<plain>")[0])
    assert plain.decode(plain.encode("a<plain>b")) == "ab"
    assert plain.vocab_size == size  # a name without a token does not become one


def test_clean_up_of_spaces_follows_the_config(tmp_path: Path) -> None:
    falcon_style(tmp_path)
    text = "it 's the end , is n't it ? yes !"
    kept = Tokenizer.load(tmp_path)
    assert kept.decode(kept.encode(text)) == text
    change_json(tmp_path / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    cleaned = Tokenizer.load(tmp_path)
    assert cleaned.decode(cleaned.encode(text)) == "it's the end, isn't it? yes!"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", b"{", "tokenizer.json: is not JSON"),
        ("tokenizer.json", b"\xff\xfe\x00", "tokenizer.json: is not text: invalid UTF-8 at byte 0"),
        ("tokenizer.json", b"[1]", "tokenizer.json: is not a JSON object"),
        ("tokenizer.json", b'{"model": {"type": "nope"}}', "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", b"[" * 100_000, "tokenizer.json: is not JSON that can be read"),
        ("tokenizer_config.json", b"oops", "tokenizer_config.json: is not JSON"),
        ("special_tokens_map.json", b'"x"', "special_tokens_map.json: is not a JSON object"),
        ("generation_config.json", b'{"eos_token_id": "2"}', "generation_config.json: eos_token"),
        ("generation_config.json", b'{"eos_token_id": [1, true]}', "eos_token_id is [1, True]"),
        ("config.json", b'{"eos_token_id": -1}', "config.json: eos_token_id is -1"),
    ],
)
def test_unusable_files_are_named(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    falcon_style(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Tokenizer.load(tmp_path)
    assert says in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "generation_config.json", "config.json",
    ],
)  # fmt: skip
def test_what_is_no_file_or_too_large_is_refused_at_once(tmp_path: Path, name: str) -> None:
    """Reading a FIFO would wait for ever."""
    path = tmp_path / name
    for say in ("is not a regular file", "at most 67108864 are read"):
        falcon_style(tmp_path)
        path.unlink(missing_ok=True)
        if "regular" in say:
            os.mkfifo(path)
        else:
            path.touch()
            os.truncate(path, 64 * 1024 * 1024 + 1)
        with pytest.raises(ConfigError, match=say) as caught:
            Tokenizer.load(tmp_path)
        assert str(path) in str(caught.value)
        path.unlink()


def test_another_kind_of_vocabulary(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_byte_fallback(tmp_path))
    assert not tokenizer.byte_level
    assert tokenizer.decode(tokenizer.encode("a bc é")) == "a bc é"
    assert tokenizer.eos_token_ids == (1,)
    assert tokenizer.token_text(1) == "</s>"


def test_the_embedded_models_tokenizer() -> None:
    tokenizer = Tokenizer.load(EYAS)
    assert tokenizer.byte_level
    assert tokenizer.eos_token_ids == (11,)
    text = "We the People — of the naïve 😀 year 1787.\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
