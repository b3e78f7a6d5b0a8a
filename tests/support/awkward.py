"""Texts that careless clients break, and a relay that breaks connections."""

import contextlib
import selectors
import socket
import threading
from typing import Self

# What some clients take for an end of line, text that looks like the stream's own framing, and
# characters of two to four bytes: to a byte-level vocabulary each is several tokens.
AWKWARD = (
    "one\u0085two\u2028three\u2029four\r\nfive\rsix \x00\x0b\x0c\x1c\x1e "
    "data: x\n\nevent: error\nid: 7\nretry: 1\n: comment\n\ndata: [DONE]\n\n"
    '{"error":"no","error_type":"x"} \\u2028 "quoted" '
    "naïve 漢字 😀 👩\u200d🚀 e\u0301 \ufeff </script><b>&amp;</b> end"
)


class Relay:
    """A TCP relay to a port on loopback; `cut` resets every connection. A context manager."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        # Only a shutdown wakes the thread that waits in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def cut(self) -> None:
        """End all connections at once, in the middle of whatever they carry."""
        for each in self._sockets:
            with contextlib.suppress(OSError):  # it had ended by itself
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            thread = threading.Thread(target=_pump, args=(client, server), daemon=True)
            self._threads.append(thread)
            thread.start()


def _pump(client: socket.socket, server: socket.socket) -> None:
    """Both directions, until either side ends."""
    others = {client: server, server: client}
    with client, server, selectors.DefaultSelector() as selector:
        for each in others:
            selector.register(each, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                try:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    others[source].sendall(data)
                except OSError:
                    return
