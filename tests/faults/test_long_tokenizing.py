"""`/tokenize` has no limit of its own (contract 1.7): a long answer must not become everybody's."""

import json
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from support.process_memory import forget_peak, peak_bytes, resident_bytes
from support.server import make_server
from tiercel.bench.server import ServerProcess

CHARACTERS = 1_000_000
AT_ONCE = 3
# The library takes up to 300 bytes for each token while it looks for them. Before, a token took 310
# in all, but for every client at the same time: 930 MB for these three.
BYTES_PER_TOKEN = 400
HEALTH_S, HEALTH_P99_S = 0.1, 0.75  # 6 and 34 ms were measured; the machine has much else to do


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with make_server(tmp_path_factory.mktemp("tokenizing")) as running:
        yield running


def tokenized(server: ServerProcess, text: str) -> tuple[httpx.Response, bytes]:
    with httpx.stream(
        "POST", f"{server.url}/tokenize", json={"inputs": text}, timeout=300
    ) as answer:
        return answer, answer.read()


@pytest.mark.slow
def test_long_texts_take_turns_and_little_memory(server: ServerProcess) -> None:
    """The worst text there is: a token, and fifty bytes of answer, for each of its bytes."""
    tokenized(server, "a" * 100)
    forget_peak(server.pid)
    before = resident_bytes(server.pid)
    sizes: list[int] = []

    def ask() -> None:
        answer, content = tokenized(server, "a" * CHARACTERS)
        assert answer.status_code == 200
        assert content.startswith(b'[{"id":') and content.endswith(b"}]")
        sizes.append(len(content))

    clients = [threading.Thread(target=ask) for _ in range(AT_ONCE)]
    for client in clients:
        client.start()
    probes = []
    with httpx.Client() as probe:
        while any(client.is_alive() for client in clients):
            began = time.perf_counter()
            assert probe.get(f"{server.url}/health", timeout=30).status_code == 200
            probes.append(time.perf_counter() - began)
            time.sleep(0.02)
    grown = peak_bytes(server.pid) - before
    ordered = sorted(probes)
    median_s, p99_s = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    print(
        f"\n{sizes[0] >> 20} MB each, +{grown >> 20} MB; /health median {median_s * 1e3:.0f} ms, "
        f"p99 {p99_s * 1e3:.0f} ms, most {ordered[-1] * 1e3:.0f} ms of {len(probes)}"
    )
    assert len(sizes) == AT_ONCE and len(set(sizes)) == 1
    assert grown <= BYTES_PER_TOKEN * CHARACTERS
    assert len(probes) >= 10
    assert median_s <= HEALTH_S and p99_s <= HEALTH_P99_S


def test_an_answer_in_pieces_is_the_same(server: ServerProcess) -> None:
    """Its tokens are those of its parts, where a line end always is a token of its own."""
    line = "Grüße 🦅 an alle,\u2028 hier.\n\n"
    short = json.loads(tokenized(server, line)[1])
    count = 40_000 // len(line)
    answer, content = tokenized(server, line * count)
    assert "content-length" not in answer.headers
    assert answer.headers["content-type"] == "application/json"
    tokens = json.loads(content)
    assert tokens[0] == short[0]
    encoded = (line * count).encode()
    assert tokens[-1]["stop"] == len(encoded)
    for token in tokens:
        assert encoded[token["start"] : token["stop"]].decode() == token["text"]


@pytest.mark.slow
def test_a_client_that_leaves_lets_the_next_one_in(server: ServerProcess) -> None:
    body = {"inputs": "a" * CHARACTERS}
    with httpx.stream("POST", f"{server.url}/tokenize", json=body, timeout=60) as answer:
        next(answer.iter_raw())
    began = time.perf_counter()
    assert tokenized(server, "a" * 40_000)[0].status_code == 200
    assert time.perf_counter() - began < 10
