"""The tokenizer of eyas and its files: a byte-level BPE laid out as Falcon's."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tiercel.text.chat_source import FALCON_TEMPLATE

VOCABULARY_TOKENS = 4_096
CONTEXT_TOKENS = 2_048
END_OF_TEXT = "<|endoftext|>"
# Falcon's twelve, in Falcon's order: ids 0 to 11. The end of text also serves as its beginning.
SPECIAL_TOKENS = (
    ">>TITLE<<",
    ">>ABSTRACT<<",
    ">>INTRODUCTION<<",
    ">>SUMMARY<<",
    ">>COMMENT<<",
    ">>ANSWER<<",
    ">>QUESTION<<",
    ">>DOMAIN<<",
    ">>PREFIX<<",
    ">>SUFFIX<<",
    ">>MIDDLE<<",
    END_OF_TEXT,
)
END_OF_TEXT_ID = SPECIAL_TOKENS.index(END_OF_TEXT)


def train_tokenizer(texts: Iterable[str], tokens: int = VOCABULARY_TOKENS) -> Tokenizer:
    """Learn so many tokens. All 256 bytes are among them: every input encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation(behavior="contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(
                pattern=Regex("[0-9][0-9][0-9]"), behavior="isolated", invert=False
            ),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "additional_special_tokens": list(SPECIAL_TOKENS[:-1]),
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
        "chat_template": FALCON_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> list[int]:
    """Join documents into one stream of ids: end-of-text first and after every document."""
    stream = [END_OF_TEXT_ID]
    for encoding in tokenizer.encode_batch(list(texts)):
        stream += [*encoding.ids, END_OF_TEXT_ID]
    return stream
