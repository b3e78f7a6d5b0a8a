"""Sockets to listen on, what to say when one cannot be had, and the server that listens."""

import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from tiercel.errors import ConfigError


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: `server.py` decides what a signal means."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(hostname: str, port: int, flag: str = "--port") -> socket.socket:
    """A bound socket that does not listen yet: connections are refused until the model is ready.

    Raises ConfigError that names the flags.
    """
    family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((hostname, port))
    except OSError as error:
        listener.close()
        raise cannot_listen(hostname, port, error, flag) from None
    return listener


def cannot_listen(
    hostname: str, port: int, error: BaseException | None, flag: str = "--port"
) -> ConfigError:
    """The one line about it."""
    reason = error.strerror if isinstance(error, OSError) else error
    return ConfigError(
        f"cannot listen on {hostname}:{port} ({reason}): choose another --hostname or {flag}"
    )
