"""A model hub on loopback: the few routes that a download uses, over files of a folder.

Speaks huggingface_hub's protocol well enough for its real client, nothing more.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISION = "a" * 40


class Hub:
    """One repository `org/tiny`, served from `folder`; any other `status` is the only answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = 200
        self.error_code = ""
        self.requested: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def log_message(self, format: str, *args: object) -> None:
                """Tests keep quiet."""

            def _answer(self, body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.requested.append(path)
                status, headers, data = hub.answer(path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of one request."""
        headers = {"X-Repo-Commit": REVISION}
        if self.status != 200:
            return self.status, {"X-Error-Code": self.error_code}, b"{}"
        files = {p.name: p for p in sorted(self.folder.iterdir())}
        if path == "/api/models/org/tiny/revision/gone":
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if path.startswith("/api/models/org/tiny/tree/"):
            entries = [
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": _etag(p)}
                for n, p in files.items()
            ]
            return 200, headers | {"Content-Type": "application/json"}, json.dumps(entries).encode()
        if path.startswith("/api/models/org/tiny"):
            info = {"id": "org/tiny", "sha": REVISION, "private": False}
            info |= {"siblings": [{"rfilename": name} for name in files]}
            return 200, headers | {"Content-Type": "application/json"}, json.dumps(info).encode()
        name = path.removeprefix("/org/tiny/resolve/")
        name = name.removeprefix(f"{REVISION}/").removeprefix("main/")
        if name in files:
            headers["ETag"] = f'"{_etag(files[name])}"'
            return 200, headers, files[name].read_bytes()
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """Serve `folder` until the block ends."""
    hub = Hub(folder)
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        thread.join()
        hub.server.server_close()
