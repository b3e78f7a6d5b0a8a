"""What the text of a setting means, and what is said of one that is wrong."""

import ipaddress

from pydantic import ValidationError

# Ends each key in API_KEY if it was a flag (see `secret_flags.py`). No key can have it.
GIVEN_BY_FLAG = "\x1f"
# Their values are secret, or may hold a secret.
_UNSPEAKABLE = ("--api-key", "--ngrok-authtoken", "--otlp-endpoint")


def plain_level(text: str) -> str:
    """The overall level of a filter as Rust's `tracing` reads it: `info,some_target=debug`."""
    plain = [part.strip().lower() for part in text.split(",") if "=" not in part]
    level = plain[0] if plain else "info"
    return {"trace": "debug", "off": "error"}.get(level, level)


def is_address(text: str) -> bool:
    """Whether it can be listened on; a machine's name is none."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text == "localhost"
    return True


def error_sentence(error: ValidationError) -> str:
    """The first thing that is wrong, in one line; a secret is never repeated."""
    first = error.errors()[0]
    name = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{name}: there is no such setting (in --config-file)"
    if not first["loc"]:
        return message
    sentence = f"{name}: {message[0].lower()}{message[1:]}"
    if name in _UNSPEAKABLE:
        return sentence
    return f"{sentence} (given: {first['input']!r})"


def listed_sizes(listed: str | None) -> tuple[int, ...] | None:
    """Of `1,2,4`, as --cuda-graphs takes them."""
    return None if listed is None else tuple(int(size) for size in listed.split(","))


def listed_keys(text: str) -> tuple[str, ...]:
    """Of API_KEY: separated by commas, unless each of them was a flag."""
    if GIVEN_BY_FLAG in text:
        return tuple(text.split(GIVEN_BY_FLAG)[:-1])
    return tuple(part.strip() for part in text.split(","))
