"""Tokenizers for tests: an awkward byte-level one in Falcon's style, and one of another kind."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tiercel.eyas.vocabulary import save_tokenizer, train_tokenizer

# Characters of one to four bytes, often, so that merges end inside and across characters.
_TEXT = [
    "naïve café 漢字 漢 😀😁 e\u0301 день 漢字漢字 😀 😀😁 ñandú � ",
    "the end, the start 12345",
] * 8


def falcon_style(folder: Path) -> Path:
    """All 256 bytes, merges through characters, Falcon's special tokens, added tokens."""
    tokenizer = train_tokenizer(_TEXT)
    # Not special; the second is outside the alphabet, the third has a byte that is no character.
    tokenizer.add_tokens(["<plain>", "two words", "déjà", AddedToken("字x", normalized=False)])
    save_tokenizer(tokenizer, folder)
    return folder


def falcon_sized(folder: Path, tokens: int = 65_024) -> Path:
    """As falcon_style, with Falcon-7B's number of tokens: most are random bytes put together.

    So nearly every one of them is no whole text by itself, which no trained vocabulary can offer.
    """
    rng = random.Random(tokens)
    description = json.loads(train_tokenizer(_TEXT).to_str())
    vocabulary, merges = description["model"]["vocab"], description["model"]["merges"]
    pieces = [each for each in vocabulary if not each.startswith((">>", "<|"))]
    taken = max(*vocabulary.values(), *(each["id"] for each in description["added_tokens"]))
    while taken + 1 < tokens:
        left, right = rng.choice(pieces), rng.choice(pieces)
        if left + right in vocabulary or len(left + right) > 12:
            continue
        taken += 1
        vocabulary[left + right] = taken
        merges.append([left, right])
        pieces.append(left + right)
    save_tokenizer(Tokenizer.from_str(json.dumps(description)), folder)
    return folder


def drop_letter(folder: Path, letter: str, **model: Any) -> None:
    """Take a letter, and what is merged from it, out of a folder's byte-level tokenizer.json.

    `model`: further fields of its model.
    """
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text())
    bpe = description["model"] | model
    bpe["vocab"] = {token: id for token, id in bpe["vocab"].items() if letter not in token}
    bpe["merges"] = [pair for pair in bpe["merges"] if letter not in "".join(pair)]
    path.write_text(json.dumps(description | {"model": bpe}))


def with_byte_fallback(folder: Path) -> Path:
    """Llama-style: a leading space is stripped, unknown characters are written as bytes."""
    letters = [*"▁abcdefgh", "▁a", "bc"]
    vocabulary = {"<unk>": 0, "</s>": 1}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), *letters]:
        vocabulary[token] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [("▁", "a"), ("b", "c")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    change_json(folder / "tokenizer_config.json", eos_token={"content": "</s>"})
    return folder


def change_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file, which may be missing; None removes one."""
    value = json.loads(path.read_text()) if path.exists() else {}
    value |= changes
    path.write_text(json.dumps({name: each for name, each in value.items() if each is not None}))
