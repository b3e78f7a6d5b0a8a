"""A Python client library in its own environment, driven through `tests/clients/drive.py`."""

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "clients" / "drive.py"
CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"


@dataclass
class Seen:
    """What the caller saw: a value, or the items of a stream up to its end or an error."""

    version: str
    value: Any = None
    items: list[Any] = field(default_factory=list)
    error: str | None = None  # the exception's class
    message: str = ""

    def result(self) -> Any:
        """The value. Fails the test when there was an error."""
        assert self.error is None, f"{self.error}: {self.message}"
        return self.value

    def stream(self) -> list[Any]:
        """The items. Fails the test when there was an error."""
        assert self.error is None, f"{self.error}: {self.message}"
        return self.items


class ClientProcess:
    """One interpreter that answers tasks; a context manager. `home` keeps the user's tokens out."""

    def __init__(self, python: Path | str, home: Path) -> None:
        self._command = [str(python), str(SCRIPT)]
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "LANGSMITH_TRACING": "false",
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=self._environment,
        )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, library: str, kind: str, url: str, method: str, /, **task: Any) -> Seen:
        """See drive.py; `positional`, `arguments`, `key`, `take`, `settings`, `chat` as there."""
        given = {"library": library, "kind": kind, "url": url, "method": method}
        defaults = {"positional": [], "arguments": {}, "key": None, "take": None}
        whole = {**defaults, "settings": {}, "chat": False, **given, **task}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(whole) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the client's process has ended"
        return Seen(**json.loads(line))


def make_clients() -> str | None:
    """Have the old clients' environment. Why it cannot be made, or None."""
    command = ["make", "clients", f"PYTHON={sys.executable}"]
    with (ROOT / "Makefile").open() as lock:  # several workers of pytest may come here at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if made.returncode == 0:
        return None
    return f"`make clients` failed: {made.stderr.strip().splitlines()[-1]}"
