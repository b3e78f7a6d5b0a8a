"""Secrets on the command line: which words go, and what says the same instead."""

import os
import sys

import pytest

from tiercel.secret_flags import hide, off_the_command_line
from tiercel.settings import load_settings

END = "\x1f"


@pytest.mark.parametrize(
    ("arguments", "kept", "variables"),
    [
        ("serve m --port 1", "serve m --port 1", {}),
        ("serve --api-key k m", "serve m", {"API_KEY": f"k{END}"}),
        ("serve --api-key=k -p 1", "serve -p 1", {"API_KEY": f"k{END}"}),
        ("--api-key a,b --api-key=c", "", {"API_KEY": f"a,b{END}c{END}"}),
        ("--api-key=a=b m", "m", {"API_KEY": f"a=b{END}"}),
        ("--ngrok-authtoken t", "", {"NGROK_AUTHTOKEN": "t"}),
        ("--otlp-endpoint http://h:1", "--otlp-endpoint http://h:1", {}),
        ("--otlp-endpoint=http://u:p@h:1", "", {"OTLP_ENDPOINT": "http://u:p@h:1"}),
        ("--otlp-endpoint http://h/?key=1 m", "m", {"OTLP_ENDPOINT": "http://h/?key=1"}),
        ("m --api-key", "m --api-key", {}),
        ("--api-keys-file f", "--api-keys-file f", {}),
        ("serve -- --api-key k", "serve -- --api-key k", {}),
    ],
)
def test_what_goes_and_what_stays(arguments: str, kept: str, variables: dict[str, str]) -> None:
    assert off_the_command_line(arguments.split()) == (kept.split(), variables)


def test_the_keys_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag is one key, whatever commas it has; the variable is a list, as it always was."""
    monkeypatch.setenv("API_KEY", f"a,b{END}c{END}")
    assert [key.get_secret_value() for key in load_settings().api_key] == ["a,b", "c"]
    monkeypatch.setenv("API_KEY", "a, b\n")
    assert [key.get_secret_value() for key in load_settings().api_key] == ["a", "b"]


def test_it_starts_again_only_with_a_secret() -> None:
    started: list[tuple[str, list[str]]] = []

    def replace(path: str, words: list[str]) -> None:
        started.append((path, words))

    for arguments in (["serve", "m"], ["serve", "--api-key", f"a{END}b"], ["serve", "--api-key"]):
        hide(arguments, command=["python", "-m", "x", *arguments], replace=replace)
    assert started == []
    arguments = ["serve", "--ngrok-authtoken", "t", "m"]
    try:
        hide(arguments, command=["python", "-m", "x", *arguments], replace=replace)
    finally:
        os.unsetenv("NGROK_AUTHTOKEN")
    assert started == [(sys.executable, ["python", "-m", "x", "serve", "m"])]
