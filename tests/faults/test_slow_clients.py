"""R-28: clients that send a byte a second, or nothing. They are let go, and nobody else waits."""

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from support.process_memory import open_files
from support.raw_http import connect
from support.server import make_server
from tiercel.bench.server import ServerProcess

# Shorter than the defaults (10 s and 30 s), which are the same code with other numbers.
HEADER_S, BODY_S = 3.0, 6.0
LATE_S = 2.0  # a deadline may be as late as this on a busy machine
SLOW_HEADS, SLOW_BODIES, SILENT = 300, 100, 100
PROBES = 40
BODY = {"inputs": "Hello", "parameters": {"max_new_tokens": 4}}
HEAD = b"GET /health HTTP/1.1\r\nX-Slow: "
POST = b"POST /generate HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[ServerProcess]:
    flags = ("--header-timeout", str(HEADER_S), "--body-timeout", str(BODY_S))
    with make_server(tmp_path_factory.mktemp("slow"), small_model, *flags) as server:
        yield server


def p95_s(server: ServerProcess) -> float:
    """The better of two rounds: what else this machine does is not the question."""
    return min(one_p95_s(server), one_p95_s(server))


def one_p95_s(server: ServerProcess) -> float:
    """Of short generations, one after the other."""
    url = f"http://{server.host}:{server.port}"
    taken = []
    with httpx.Client(base_url=url, timeout=20) as client:
        for _ in range(PROBES):
            start_s = time.perf_counter()
            assert client.post("/generate", json=BODY).status_code == 200
            taken.append(time.perf_counter() - start_s)
    return sorted(taken)[int(PROBES * 0.95)]


def settled_files(pid: int) -> int:
    """The fewest within half a second: the probes' last connection may not be closed there yet."""
    seen = []
    for _ in range(10):
        seen.append(open_files(pid))
        time.sleep(0.05)
    return min(seen)


class SlowClients:
    """Sockets that get one more byte each second; notes how long each of them lived."""

    def __init__(self, port: int, openings: list[bytes]) -> None:
        self.lived_s: dict[int, float] = {}
        self._stack = ExitStack()
        self._sockets: list[socket.socket] = []
        self._start_s: list[float] = []
        self._selector = selectors.DefaultSelector()
        for index, opening in enumerate(openings):
            connection = self._stack.enter_context(connect(port))
            connection.sendall(opening)
            self._start_s.append(time.perf_counter())
            self._selector.register(connection, selectors.EVENT_READ, index)
            self._sockets.append(connection)
        self._drips = [bool(opening) for opening in openings]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        deadline = time.perf_counter() + BODY_S + 3 * LATE_S
        next_drip = time.perf_counter() + 1.0
        while len(self.lived_s) < len(self._sockets) and time.perf_counter() < deadline:
            for key, _ in self._selector.select(0.1):
                self._read(key.data)
            if time.perf_counter() >= next_drip:
                next_drip += 1.0
                self._drip()

    def _read(self, index: int) -> None:
        """What the server says is dropped; the end is noted."""
        with suppress(ConnectionResetError):
            if self._sockets[index].recv(4_096):
                return
        self.lived_s[index] = time.perf_counter() - self._start_s[index]
        self._selector.unregister(self._sockets[index])

    def _drip(self) -> None:
        for index, connection in enumerate(self._sockets):
            if self._drips[index] and index not in self.lived_s:
                with suppress(OSError):
                    connection.send(b"a")

    def join(self) -> None:
        self._thread.join()
        self._stack.close()
        self._selector.close()


@pytest.mark.slow
def test_slow_clients(patient: ServerProcess) -> None:
    p95_s(patient)  # warm
    before_s = p95_s(patient)
    files = settled_files(patient.pid)
    slow = SlowClients(patient.port, [HEAD] * SLOW_HEADS + [POST] * SLOW_BODIES + [b""] * SILENT)
    count = SLOW_HEADS + SLOW_BODIES + SILENT
    deadline = time.monotonic() + 5
    while open_files(patient.pid) < files + count:
        assert time.monotonic() < deadline, "not all of them were accepted"
        time.sleep(0.02)
    during_s = p95_s(patient)
    slow.join()
    assert len(slow.lived_s) == count
    bodies = range(SLOW_HEADS, SLOW_HEADS + SLOW_BODIES)
    heads_s = [lived for index, lived in slow.lived_s.items() if index not in bodies]
    bodies_s = [slow.lived_s[index] for index in bodies]
    after_s = p95_s(patient)
    print(
        f"\nheads {min(heads_s):.1f}-{max(heads_s):.1f} s, bodies {min(bodies_s):.1f}-"
        f"{max(bodies_s):.1f} s; p95 {before_s * 1e3:.0f} / {during_s * 1e3:.0f} / "
        f"{after_s * 1e3:.0f} ms before, during, after"
    )
    assert min(heads_s) >= HEADER_S - 0.5 and max(heads_s) <= HEADER_S + LATE_S
    assert min(bodies_s) >= BODY_S - 0.5 and max(bodies_s) <= BODY_S + LATE_S
    # Of the two baselines the slower one: on a shared machine either may be a quiet moment that the
    # other has not had (46 and 113 ms were seen around the same run), and each p95 is of 40 probes.
    assert during_s <= 1.5 * max(before_s, after_s) + 0.01
    deadline = time.monotonic() + 5
    while open_files(patient.pid) > files + 2:
        assert time.monotonic() < deadline, "file descriptors were not given back"
        time.sleep(0.1)
