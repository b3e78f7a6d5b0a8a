"""The model of the conformance suite: a tiny random Falcon in which some words are scripted.

Behind ordinary text it is an honest random model, whose logits a reference forward reproduces, and
which says printable ASCII and never ends. Behind a scripted token the next one is certain: that
makes ends of text, stop strings over two tokens, emoji in bytes and broken rows happen at will.
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from support.checkpoints import make_checkpoint, write_tokenizer

VOCAB_SIZE = 336
TRAINED_TOKENS = 304  # bytes, specials and some merges; the words below come behind them
EOS, EOS_ID = "<|endoftext|>", 11
HIDDEN_HEADS, HEAD_DIM = 8, 16  # 128 wide
BROKEN = "<broken>"  # its embedding overflows: a row that reads it has no logits

EMOJI = "😀"
_EMOJI_BYTES = [bytes([byte]) for byte in EMOJI.encode()]
# Each line is what the model says, token for token, behind its first word. A last word that has
# occurred before goes on from there.
SCRIPTS: tuple[tuple[str | bytes, ...], ...] = (
    ("<end>", EOS),
    ("<bye>", " fare", "well", EOS),
    ("<count>", " one", " two", " three", " four", " six", " one"),
    ("<smile>", *_EMOJI_BYTES, EOS),
)
COUNTED = (" one", " two", " three", " four", " six")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'banned' -%}{{ raise_exception('nobody is called banned') }}{%- endif -%}
{{- message['role'][0] + ':' + message['content'] -}}
{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not messages[-1]['content'].endswith('>') -%}
{{- '\\na:' -}}
{%- endif -%}
"""

_LOUD = 200.0  # length of a scripted embedding: the layers' part of the residual is lost beside it
_CERTAIN = 8.0
_BANNED = 30.0  # logits below the others for what is only said when scripted


def make_model(folder: Path) -> Path:
    """Configuration A's checkpoint, 0.6M parameters in float32, with a chat template."""
    make_checkpoint(
        folder, "7b", heads=HIDDEN_HEADS, head_dim=HEAD_DIM, tied=False, vocab_size=VOCAB_SIZE
    )
    tokenizer = _write_tokenizer(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    _script(tensors, tokenizer)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def without_chat_template(model: Path, folder: Path) -> Path:
    """Configuration E's: the same model."""
    shutil.copytree(model, folder)
    _change(folder / "tokenizer_config.json", chat_template=None)
    return folder


def with_begin_token(model: Path, folder: Path) -> Path:
    """The same model with a tokenizer that puts a special token in front of every text."""
    shutil.copytree(model, folder)
    begin = ">>TITLE<<"
    sequence = [
        {"SpecialToken": {"id": begin, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    _change(
        folder / "tokenizer.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": sequence,
            "pair": [*sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {begin: {"id": begin, "ids": [0], "tokens": [begin]}},
        },
    )
    return folder


def _write_tokenizer(folder: Path) -> Tokenizer:
    write_tokenizer(folder, TRAINED_TOKENS)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = dict.fromkeys(word for line in SCRIPTS for word in line if isinstance(word, str))
    tokenizer.add_tokens([word for word in [*words, BROKEN] if word != EOS])
    unused = VOCAB_SIZE - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<unused-{number}>" for number in range(unused)])
    tokenizer.save(str(folder / "tokenizer.json"))
    _change(folder / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    return tokenizer


def _script(tensors: dict[str, torch.Tensor], tokenizer: Tokenizer) -> None:
    """Gives scripted tokens directions of their own in the residual stream, and their successors
    rows of the head that answer to them. Nothing else reads or writes those directions.
    """
    successors = _successors(tokenizer)
    generator = torch.Generator().manual_seed(1)
    hidden = HIDDEN_HEADS * HEAD_DIM
    start = torch.randn(hidden, len(successors) + 2, generator=generator)
    start[:, 0] = 1.0  # the layer norm takes the mean away
    basis = torch.linalg.qr(start).Q.T  # [directions, hidden]
    _, bias, *directions = basis
    rest = torch.eye(hidden) - basis.T @ basis
    for name, tensor in tensors.items():
        if name.endswith(("dense.weight", "dense_4h_to_h.weight")):
            tensor.copy_(rest @ tensor)
    embeddings = tensors["transformer.word_embeddings.weight"]
    head = tensors["lm_head.weight"]
    embeddings.copy_(embeddings @ rest)
    head.copy_(head @ rest)
    for token_id in range(VOCAB_SIZE):
        if not _sayable(tokenizer, token_id):
            head[token_id] -= _BANNED * bias
    for (token_id, successor), direction in zip(successors.items(), directions, strict=True):
        embeddings[token_id] = _LOUD * direction
        head[successor] += _CERTAIN * direction
    signs = torch.randn(hidden, generator=generator).sign()
    embeddings[_id(tokenizer, BROKEN)] = 3e38 * signs
    tensors["transformer.ln_f.weight"].fill_(1.0)
    tensors["transformer.ln_f.bias"].copy_(bias)


def _successors(tokenizer: Tokenizer) -> dict[int, int]:
    found: dict[int, int] = {}
    for line in SCRIPTS:
        ids = [_id(tokenizer, word) for word in line]
        for token_id, successor in itertools.pairwise(ids):
            if found.setdefault(token_id, successor) != successor:
                raise ValueError(f"two successors of one token in {line}")
    return found


def _id(tokenizer: Tokenizer, word: str | bytes) -> int:
    if isinstance(word, bytes):
        # The byte-level alphabet writes the bytes of EMOJI as these characters.
        word = {b"\xf0": "ð", b"\x9f": "Ł", b"\x98": "ĺ", b"\x80": "Ģ"}[word]
    token_id: int | None = tokenizer.token_to_id(word)
    if token_id is None:
        raise ValueError(f"{word!r} is no token")
    return token_id


def _sayable(tokenizer: Tokenizer, token_id: int) -> bool:
    """Whether the model says it unscripted: printable ASCII that is no added token."""
    if token_id <= EOS_ID or token_id >= TRAINED_TOKENS:
        return False
    text: str = tokenizer.decode([token_id])
    return text.isascii() and text.isprintable()


def _change(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {name: each for name, each in value.items() if each is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
