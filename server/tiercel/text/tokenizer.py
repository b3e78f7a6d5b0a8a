"""Tokenizer: text to ids and back, as the model's own files say. No transformers, no templates.

Holds nothing that changes after loading, so any thread may use it; encoding releases the GIL.
"""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers

from tiercel.errors import ConfigError
from tiercel.text.byte_level import is_byte_level, lost_bytes, token_bytes
from tiercel.text.files import TOKENIZER, TokenFiles, read_token_files

# What transformers' clean_up_tokenization_spaces replaces, in its order.
_CLEAN_UP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class TextToken(NamedTuple):
    """A token of an input. `start` and `stop` are byte offsets into its UTF-8."""

    id: int
    text: str  # the input from start to stop
    start: int
    stop: int


class Tokenizer:
    """One model's tokenizer. Made by `load`."""

    def __init__(self, backend: tokenizers.Tokenizer, files: TokenFiles) -> None:
        self._backend = backend
        self._clean_up = files.clean_up_spaces
        self.byte_level = is_byte_level(files.decoder) and not files.clean_up_spaces
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(id for id, token in added.items() if token.special)
        self.bos_token = files.bos_token
        self.eos_token = files.eos_token
        self.eos_token_ids = _eos_ids(backend, files)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self._bytes = [b""] * self.vocab_size  # holes of the vocabulary stand for nothing
        if self.byte_level:
            for token, id in vocabulary.items():
                self._bytes[id] = token_bytes(token)
        self.lost_bytes: list[int] = []  # a prompt is read as if without them
        if is_byte_level(files.decoder) and _drops_unknown(backend):
            self.lost_bytes = lost_bytes(vocabulary)

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """The tokenizer of a model's folder.

        Reads tokenizer.json and, where they exist, tokenizer_config.json, special_tokens_map.json,
        generation_config.json and config.json. Raises ConfigError, naming the file, for one that is
        missing or unusable.
        """
        folder = Path(folder)
        files = read_token_files(folder)
        try:
            backend = tokenizers.Tokenizer.from_str(files.definition)
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(f"{folder / TOKENIZER} is not a tokenizer: {error}") from error
        backend.no_truncation()
        backend.no_padding()
        known = [token for token in files.special_tokens if backend.token_to_id(token) is not None]
        backend.add_special_tokens(known)
        return cls(backend, files)

    def definition(self) -> str:
        """The whole tokenizer as a tokenizer.json, with special tokens that other files name."""
        return self._backend.to_str()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, with the special tokens that tokenizer.json's post-processor adds.

        Raises ValueError for lone surrogates.
        """
        _check_text(text)
        # Without offsets: 512 tokens take 0.76 ms against 0.90.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def encode_lazily(self, text: str, *, add_special_tokens: bool = True) -> Iterator[TextToken]:
        """The tokens of `text` with their places in it.

        Tokens that are parts of one character all have that character's span and text; a special
        token that was added has an empty one at 0. Raises ValueError for lone surrogates.

        Each is made when it is asked for: a long text has millions. The ids are found at once; what
        is kept of a token meanwhile is some 130 bytes.
        """
        _check_text(text)
        # Of one text it would hold the GIL, for seconds where the text is long.
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return _text_tokens(text, encoding)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that form no character are U+FFFD, unknown ids are nothing."""
        text = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if self._clean_up:
            for old, new in _CLEAN_UP:
                text = text.replace(old, new)
        return text

    def token_text(self, id: int) -> str:
        """The text of one token by itself, special ones shown, as in `prefill` and `top_tokens`."""
        if self.byte_level:
            return self.token_bytes(id).decode("utf-8", "replace")
        return self.decode([id], skip_special_tokens=False)

    def token_bytes(self, id: int) -> bytes:
        """The bytes a token stands for, where `byte_level`; none for an id without a token."""
        return self._bytes[id] if 0 <= id < self.vocab_size else b""

    def is_special(self, id: int) -> bool:
        """Whether the token is hidden from `generated_text`."""
        return id in self._special


def _text_tokens(text: str, encoding: tokenizers.Encoding) -> Iterator[TextToken]:
    place, offset = 0, 0  # the same in characters and in bytes; tokens hardly ever go back
    for index, id in enumerate(array("I", encoding.ids)):
        # One at a time: the library's list of all would take more than everything else together.
        start, stop = encoding.token_to_chars(index) or (0, 0)
        if start < place:
            place, offset = 0, 0
        offset += len(text[place:start].encode())
        place = start
        part = text[start:stop]
        yield TextToken(id, part, offset, offset + len(part.encode()))


def _drops_unknown(backend: tokenizers.Tokenizer) -> bool:
    """Whether what no token stands for is left out, without a word.

    False where a normalizer may replace it before.
    """
    model = backend.model
    if not isinstance(model, tokenizers.models.BPE) or backend.normalizer is not None:
        return False
    return model.unk_token is None and not model.byte_fallback


def lone_surrogate(text: str) -> int | None:
    """The index of the first character that UTF-8 cannot write, or None.

    JSON lets `"\\ud800"` through as such a character; tokenizers refuse it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _eos_ids(backend: tokenizers.Tokenizer, files: TokenFiles) -> tuple[int, ...]:
    """The tokenizer's own end-of-sequence id, unless the configs list several or it has none."""
    own = None if files.eos_token is None else backend.token_to_id(files.eos_token)
    if own is None or len(files.eos_token_ids) > 1:
        return files.eos_token_ids
    return (own,)


def _check_text(text: str) -> None:
    place = lone_surrogate(text)
    if place is not None:
        raise ValueError(f"the character at index {place} is half of a surrogate pair")
