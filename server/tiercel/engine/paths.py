"""The files of one engine's private directory (mode 0700): two sockets and the options."""

from pathlib import Path


def to_engine(directory: Path) -> str:
    """Address of the socket the API process binds for messages to the engine."""
    return f"ipc://{directory / 'in.sock'}"


def from_engine(directory: Path) -> str:
    """Address of the socket the API process binds for messages from the engine."""
    return f"ipc://{directory / 'out.sock'}"


def options_file(directory: Path) -> Path:
    """Where the engine reads its options."""
    return directory / "options.json"
