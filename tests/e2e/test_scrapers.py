"""R-30, the scrapers: two at 20 Hz beside a loaded server, and some that stop reading."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event

import httpx
import psutil
import pytest

from support.server import make_server
from tiercel.bench.server import ServerProcess

pytestmark = pytest.mark.slow
SCRAPE = b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text\r\n\r\n"
BODY = {"inputs": "Fellow citizens,", "parameters": {"max_new_tokens": 8}}
SCRAPERS, EVERY_S = 2, 0.05
WINDOW_S, PAIRS = 1.5, 10


class Scraper:
    """One connection. Reads what it gets, at the cost of a few system calls."""

    def __init__(self, server: ServerProcess) -> None:
        self._socket = socket.create_connection((server.host, server.port), timeout=10)

    def close(self) -> None:
        self._socket.close()

    def scrape(self) -> int:
        """Bytes of the page."""
        self._socket.sendall(SCRAPE)
        head, _, got = self._read_head()
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        size = len(got)
        while size < length:
            size += len(self._socket.recv(1 << 20))
        return length

    def _read_head(self) -> tuple[bytes, bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._socket.recv(65536)
        return data.partition(b"\r\n\r\n")

    def run(self, until_s: float) -> int:
        """How many scrapes there were, one every EVERY_S."""
        count, due_s = 0, time.monotonic()
        while due_s < until_s:
            self.scrape()
            count += 1
            due_s += EVERY_S
            time.sleep(max(0.0, due_s - time.monotonic()))
        return count


@dataclass(frozen=True)
class Window:
    """What a server did in a while; seconds are those of the API process's CPU time."""

    tokens_per_s: float
    cpu_s: float
    scrapes: int


def generated(server: ServerProcess) -> float:
    page = server.get("/metrics")[1]
    return next(
        float(line.split()[1])
        for line in page.splitlines()
        if line.startswith("tiercel_generated_tokens_total ")
    )


def window(server: ServerProcess, scrapers: list[Scraper]) -> Window:
    process = psutil.Process(server.pid)
    before, began_s, cpu = generated(server), time.monotonic(), process.cpu_times()
    with ThreadPoolExecutor(SCRAPERS) as pool:
        until_s = began_s + WINDOW_S
        counts = list(pool.map(lambda each: each.run(until_s), scrapers))
        time.sleep(max(0.0, until_s - time.monotonic()))
    after = process.cpu_times()
    tokens_per_s = (generated(server) - before) / (time.monotonic() - began_s)
    return Window(tokens_per_s, after.user + after.system - cpu.user - cpu.system, sum(counts))


def test_what_two_scrapers_cost(tmp_path: Path) -> None:
    """Windows with and without them take turns. The bounds are those of a change of kind: what is
    measured is printed, and noted in server/RELIABILITY.md."""
    stop = Event()

    def stream(server: ServerProcess) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while not stop.is_set():
                body = {"inputs": "A story", "parameters": {"max_new_tokens": 200}}
                with http.stream("POST", "/generate_stream", json=body) as response:
                    for _ in response.iter_raw():
                        if stop.is_set():
                            break

    with make_server(tmp_path, None) as server, ThreadPoolExecutor(4) as pool, ExitStack() as last:
        last.callback(stop.set)
        for _ in range(4):
            pool.submit(stream, server)
        scrapers = [last.enter_context(closing(Scraper(server))) for _ in range(SCRAPERS)]
        window(server, scrapers)  # the first pages take longer
        pairs = [(window(server, []), window(server, scrapers)) for _ in range(PAIRS)]
    costs_ms = [1e3 * (busy.cpu_s - calm.cpu_s) / busy.scrapes for calm, busy in pairs]
    ratios = [busy.tokens_per_s / calm.tokens_per_s for calm, busy in pairs]
    per_s = median(busy.scrapes for _, busy in pairs) / WINDOW_S
    print(
        f"\n{per_s:.0f} scrapes/s; CPU of the API process per scrape: "
        f"median {median(costs_ms):.2f} ms ({min(costs_ms):.2f} to {max(costs_ms):.2f}); "
        f"tokens/s with them / without: median {median(ratios):.3f} "
        f"({', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))})"
    )
    assert per_s > 20
    assert median(costs_ms) < 8.0
    assert median(ratios) > 0.7


def stalled(server: ServerProcess) -> socket.socket:
    """A scraper that has asked 200 times and never reads."""
    scraper = socket.create_connection((server.host, server.port))
    scraper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    scraper.setblocking(False)
    for _ in range(200):
        try:
            scraper.send(SCRAPE)
        except BlockingIOError:
            break
    return scraper


def test_scrapers_that_stop_reading(tmp_path: Path) -> None:
    """They cost no time, no memory and no delay at the end; who reads is served as before."""
    with make_server(tmp_path, None) as server, ExitStack() as sockets:
        process = psutil.Process(server.pid)
        http = sockets.enter_context(httpx.Client(base_url=server.url, timeout=20))

        def latencies() -> list[float]:
            times_s = []
            for _ in range(30):
                started_s = time.perf_counter()
                assert http.post("/generate", json=BODY).status_code == 200
                times_s.append(time.perf_counter() - started_s)
            return times_s

        latencies()
        before, rss = latencies(), process.memory_info().rss
        for _ in range(8):
            sockets.enter_context(closing(stalled(server)))
        time.sleep(1.0)
        cpu_s = process.cpu_times().user
        time.sleep(1.0)
        idle_s = process.cpu_times().user - cpu_s
        beside = latencies()
        grown = process.memory_info().rss - rss
        assert "\ntiercel_http_requests_in_flight 9\n" in server.get("/metrics")[1]
        print(
            f"\nmedian {median(before) * 1e3:.0f} ms before, {median(beside) * 1e3:.0f} beside 8 "
            f"stalled scrapers; +{grown / 1e6:.1f} MB; {idle_s * 1e3:.0f} ms of CPU in a second"
        )
        assert median(beside) < 1.5 * median(before)
        assert idle_s < 0.2
        assert grown < 32e6
        started_s = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.wait(20) == 0
        ended_s = time.monotonic() - started_s
        print(f"ended {ended_s:.1f} s after SIGTERM")
        assert ended_s < 4.0  # of these, one second waits for them
