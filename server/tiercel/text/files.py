"""What the files of a model's folder say about its tokens. Reads JSON, no tokenizer library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiercel.errors import ConfigError
from tiercel.foreign_files import BadFile, MissingFile, parse_object, read_bytes

TOKENIZER = "tokenizer.json"
LIMIT_BYTES = 64 * 1024 * 1024  # of any file; Falcon's largest has 3 MB
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


@dataclass(frozen=True)
class TokenFiles:
    """The parts of the tokenizer's files that Tiercel uses."""

    definition: str  # tokenizer.json as it is
    decoder: dict[str, Any]
    special_tokens: tuple[str, ...]  # named as special outside tokenizer.json
    bos_token: str | None
    eos_token: str | None
    eos_token_ids: tuple[int, ...]  # of the configs, used where they say more than the tokenizer
    clean_up_spaces: bool


def read_token_files(folder: Path) -> TokenFiles:
    """Raises ConfigError, naming the file and the field, for a missing or unusable file."""
    definition = read_text(folder / TOKENIZER)
    if definition is None:
        raise ConfigError(
            f"{folder / TOKENIZER} is missing: Tiercel needs the model's fast tokenizer"
        )
    tokenizer = _parse(folder / TOKENIZER, definition)
    config = read_object(folder / "tokenizer_config.json")
    tokens_map = read_object(folder / "special_tokens_map.json")
    named = {
        name: named_token(config.get(name)) or named_token(tokens_map.get(name))
        for name in _NAMED_TOKENS
    }
    listed = [*named.values()]
    for source in (config, tokens_map):
        additional = source.get("additional_special_tokens")
        listed += [named_token(each) for each in additional] if isinstance(additional, list) else []
    added = config.get("added_tokens_decoder")
    if isinstance(added, dict):
        listed += [named_token(each) for each in added.values() if _is_special(each)]
    decoder = tokenizer.get("decoder")
    return TokenFiles(
        definition=definition,
        decoder=decoder if isinstance(decoder, dict) else {},
        special_tokens=tuple(dict.fromkeys(token for token in listed if token)),
        bos_token=named["bos_token"],
        eos_token=named["eos_token"],
        eos_token_ids=_configured_eos(folder),
        clean_up_spaces=config.get("clean_up_tokenization_spaces") is True,
    )


def _configured_eos(folder: Path) -> tuple[int, ...]:
    """The end-of-sequence ids of generation_config.json, or else of config.json."""
    for name in ("generation_config.json", "config.json"):
        value = read_object(folder / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(each) is int and each >= 0 for each in ids):
            raise ConfigError(f"{folder / name}: eos_token_id is {value!r}, not one or more ids")
        return tuple(dict.fromkeys(ids))
    return ()


def named_token(token: object) -> str | None:
    """A token is written as its text, or as an object that has it as `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _is_special(token: object) -> bool:
    return isinstance(token, dict) and token.get("special") is True


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in an optional file; empty where there is no file."""
    text = read_text(path)
    return {} if text is None else _parse(path, text)


def read_text(path: Path) -> str | None:
    """What an optional file holds; None where there is none."""
    try:
        return read_bytes(path, LIMIT_BYTES).decode("utf-8")
    except MissingFile:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text: invalid UTF-8 at byte {error.start}") from error
    except BadFile as bad:
        raise ConfigError(f"{path}: {bad}; copy the model's {path.name} again") from bad


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return parse_object(text.encode())
    except BadFile as bad:
        raise ConfigError(f"{path}: {bad}; copy the model's {path.name} again") from bad
