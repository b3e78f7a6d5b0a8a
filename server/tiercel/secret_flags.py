"""Secrets that were given as flags, off the command line, which every user of the machine can read.

The process starts itself again, under the same id, with them in its environment instead, which its
own user alone can read. Until then they could be seen: for as long as the command takes to load.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from tiercel.settings_text import GIVEN_BY_FLAG

# Flags whose value is a secret, or may hold one.
_ENDPOINT = "--otlp-endpoint"
_SECRET = ("--api-key", "--ngrok-authtoken", _ENDPOINT)
# Variables that are secret, or may be; of no use to any process but the first.
SECRET_VARIABLES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN", "API_KEY", "API_KEYS_FILE",
    "NGROK_AUTHTOKEN", "OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
)  # fmt: skip


def off_the_command_line(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without secrets, and the variables that say the same."""
    kept: list[str] = []
    found: dict[str, list[str]] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if argument == "--":
            return [*kept, argument, *rest], _variables(found)
        if flag not in _SECRET:
            kept.append(argument)
            continue
        given = [argument] if equals else [argument, *islice(rest, 1)]
        if not equals:
            value = given[-1]
        # A flag without its value is for the parser to refuse, and most collectors ask for no key.
        if (len(given) == 1 and not equals) or (flag == _ENDPOINT and not set(value) & set("@?")):
            kept += given
        else:
            found.setdefault(flag, []).append(value)
    return kept, _variables(found)


def _variables(found: Mapping[str, list[str]]) -> dict[str, str]:
    """Keys may have commas, so they are separated by what no key can have; else the last counts."""
    said = {}
    for flag, values in found.items():
        name = flag.removeprefix("--").replace("-", "_").upper()
        keys = "".join(value + GIVEN_BY_FLAG for value in values)
        said[name] = keys if flag == "--api-key" else values[-1]
    return said


def hide(
    arguments: Sequence[str],
    *,
    command: Sequence[str] = tuple(sys.orig_argv),
    replace: Callable[[str, list[str]], object] = os.execv,
) -> None:
    """Start again without the secrets among `arguments`; returns if there are none.

    `arguments` are the last ones of `command`, which is how this process was started.
    """
    kept, variables = off_the_command_line(arguments)
    unclear = any(GIVEN_BY_FLAG in argument for argument in arguments)  # and no key: refused later
    if not variables or unclear or not sys.executable:
        return
    for name, value in variables.items():
        os.putenv(name, value)  # of the program that follows; ours is not read any more
    before = list(command[: len(command) - len(arguments)])
    replace(sys.executable, [*before, *kept])
