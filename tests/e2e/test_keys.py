"""Keys of a real server: from file and environment, read again on SIGHUP, never told to anyone."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.raw_http import ask, get, post
from support.server import engine_of, make_server, startup_errors
from tiercel.bench.server import ServerProcess

SECRETS = {
    "HF_TOKEN": "hf_plantedAAAA1111",
    "HUGGING_FACE_HUB_TOKEN": "hf_plantedBBBB2222",
    "API_KEY": "plantedCCCC3333,plantedDDDD4444",
}
WORDS = ("plantedAAAA1111", "plantedBBBB2222", "plantedCCCC3333", "plantedDDDD4444")
FILE_WORDS = ("plantedEEEE5555", "plantedFFFF6666", "plantedGGGG7777")
BODY = {"inputs": "Hello", "parameters": {"max_new_tokens": 1}}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("team:plantedEEEE5555\nops:plantedFFFF6666:admin\n")
    return file


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, keys_file: Path
) -> Iterator[ServerProcess]:
    flags = ("--api-keys-file", str(keys_file), "--protect-metrics", "--log-level", "debug")
    folder = tmp_path_factory.mktemp("keyed")
    with make_server(folder, tiny_model, *flags, variables=SECRETS) as running:
        yield running


def status(server: ServerProcess, key: str, path: str = "/generate") -> int:
    """Of a short generation, or of a GET of another path, with this key."""
    headers = {"authorization": f"Bearer {key}"}
    url = f"http://{server.host}:{server.port}{path}"
    if path == "/generate":
        return httpx.post(url, json=BODY, headers=headers, timeout=20).status_code
    return httpx.get(url, headers=headers, timeout=20).status_code


def wait_for(server: ServerProcess, text: str) -> None:
    deadline = time.monotonic() + 10
    while text not in server.log():
        assert time.monotonic() < deadline, f"{text!r} is not in the log"
        time.sleep(0.02)


def test_keys_come_from_the_environment_and_the_file(server: ServerProcess) -> None:
    assert [status(server, key) for key in (*WORDS[2:], *FILE_WORDS)] == [200, 200, 200, 200, 401]
    assert status(server, "nobody", "/metrics") == 401
    assert status(server, "plantedEEEE5555", "/metrics") == 403
    assert status(server, "plantedFFFF6666", "/metrics") == 200
    assert status(server, "nobody", "/health") == 200


def test_sighup_reads_the_file_again(server: ServerProcess, keys_file: Path) -> None:
    good = keys_file.read_text()
    try:
        keys_file.write_text("ops:plantedFFFF6666:admin\nnew:plantedGGGG7777\n")
        server.send(signal.SIGHUP)
        wait_for(server, "4 API keys are valid now")
        assert [status(server, key) for key in FILE_WORDS] == [401, 200, 200]
        assert status(server, "plantedCCCC3333") == 200

        keys_file.write_text("broken : line : plantedGGGG7777\n")
        server.send(signal.SIGHUP)
        wait_for(server, "the API keys stay as they were: --api-keys-file")
        assert [status(server, key) for key in FILE_WORDS] == [401, 200, 200]

        keys_file.unlink()
        server.send(signal.SIGHUP)
        wait_for(server, "No such file")
        assert status(server, "plantedGGGG7777") == 200
    finally:
        keys_file.write_text(good)
        server.send(signal.SIGHUP)
    deadline = time.monotonic() + 10
    while status(server, "plantedEEEE5555") != 200:
        assert time.monotonic() < deadline


def test_no_secret_is_told(server: ServerProcess) -> None:
    """Not in the log at its most talkative, not in any answer, not to the engine."""
    key = "Authorization: Bearer plantedCCCC3333"
    wrong = "Authorization: Bearer plantedHHHH8888"
    requests = [
        *(get(path, key) for path in ("/", "/info", "/metrics", "/nothing", "/v1/models")),
        get("/metrics", "Authorization: Bearer plantedFFFF6666"),
        get("/info", "Authorization: Bearer plantedFFFF6666"),
        post("/generate", b'{"inputs": "x", "parameters": {"max_new_tokens": 0}}', key),
        post("/generate", b"{", key),
        post("/v1/chat/completions", b"{", key),
        post("/v1/chat/completions", b"{}", wrong),
        post("/generate", b"{}", wrong, wrong),
        b"GET / HTTP/1.1\r\n" + key.encode() + b"\r\nbroken header\r\n\r\n",
        get("/info", "Authorization: Basic plantedCCCC3333"),
    ]
    answers = [ask(server.port, request) for request in requests]
    assert all(answer.status for answer in answers)
    told = b"".join(repr(answer.headers).encode() + answer.body for answer in answers)
    engine = engine_of(server)
    engine_sees = repr(engine.environ()) + repr(engine.cmdline())
    for word in (*WORDS, *FILE_WORDS, "plantedHHHH8888"):
        assert word not in server.log()
        assert word.encode() not in told
        assert word not in engine_sees


def test_keys_given_as_flags_are_in_no_process_title(tmp_path: Path, tiny_model: Path) -> None:
    """Not of the server, nor of any process below it; and they are the keys all the same."""
    collector = "http://someone:plantedUser1@127.0.0.1:9/?api-key=plantedQuery2"
    flags = (
        "--api-key", "plantedFlag3", "--api-key=planted,Flag4",
        "--ngrok-authtoken", "plantedNgrok5", "--otlp-endpoint", collector,
        "--otlp-protocol", "http/protobuf", "--num-shard", "2",
    )  # fmt: skip
    fast = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    with make_server(tmp_path, tiny_model, *flags, variables=fast) as server:
        keys = ("plantedFlag3", "planted,Flag4", "planted", "Flag4")
        assert [status(server, key) for key in keys] == [200, 200, 401, 401]
        processes = server.processes()
        titles = [Path(f"/proc/{each.pid}/cmdline").read_bytes() for each in processes]
        environments = [repr(each.environ()) for each in processes if each.pid != server.pid]
        wait_for(server, "http://127.0.0.1:9 does not take traces")
        pages = server.get("/info")[1] + server.get("/metrics")[1]
        assert server.stop() == 0
        log = server.log()
    assert len(titles) >= 4 and all(b"python" in title for title in titles)
    assert b"--num-shard" in titles[0]
    for word in (b"planted", b"Flag4"):
        assert not [title for title in titles if word in title]
    for word in ("planted", "Flag4"):
        assert not [each for each in environments if word in each]
        assert word not in log and word not in pages
    assert "--ngrok-authtoken" in log  # as one that has no effect


def test_a_bad_collector_is_refused_without_its_secrets(tmp_path: Path) -> None:
    server = make_server(tmp_path, None, "--otlp-endpoint", "ftp://someone:plantedUser1@host")
    server.start()
    try:
        assert server.wait(30) == 2
    finally:
        server.clean_up()
    (line,) = startup_errors(server.log())
    assert "--otlp-endpoint: " in line and "planted" not in line


def test_sighup_without_a_keys_file(tmp_path: Path, tiny_model: Path) -> None:
    flags = ("--hostname", "0.0.0.0")
    with make_server(tmp_path, tiny_model, *flags) as server:
        server.send(signal.SIGHUP)
        wait_for(server, "SIGHUP is ignored")
        assert server.health() == 200
        wait_for(server, "everybody who reaches http://0.0.0.0")
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("flags", "variables", "sentence"),
    [
        (["--api-keys-file", "/nowhere/keys"], {}, "cannot read --api-keys-file /nowhere/keys"),
        (["--api-keys-file", os.devnull], {}, "is not a regular file"),
        (["--api-key", ""], {}, "a key has 1 to 512 characters"),
        (["--protect-metrics", "--api-key", "plantedCCCC3333"], {}, "needs an admin key"),
        ([], {"API_KEY": "plantedCCCC3333,"}, "a key has 1 to 512 characters"),
        ([], {"API_KEY": "plantedCCCC3333,planted DDDD"}, "printable ASCII"),
    ],
)
def test_bad_keys_end_the_start(
    tmp_path: Path, tiny_model: Path, flags: list[str], variables: dict[str, str], sentence: str
) -> None:
    server = make_server(tmp_path, tiny_model, *flags, variables=variables)
    server.start()
    try:
        assert server.wait(30) == 2
    finally:
        server.clean_up()
    (line,) = startup_errors(server.log())
    assert sentence in line
    assert "planted" not in server.log()
