"""curl against a real server and the edge: streams, statuses, keys, old HTTP, a cut connection."""

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import Any

import pytest

from support.awkward import AWKWARD
from support.clients import KEY
from support.edge_server import STORY, EdgeServer, ids, parse_events, say, until
from tiercel.bench.server import ServerProcess

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

JSON = ("-H", "Content-Type: application/json")
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
CODE = "\n%{http_code} %{content_type}"


@dataclass
class Answer:
    status: int
    kind: str
    body: bytes


def native(inputs: str = "Call me", **parameters: Any) -> dict[str, Any]:
    return {"inputs": inputs, "parameters": parameters}


def curl(url: str, body: object = None, *flags: str) -> Answer:
    """A POST of JSON, or whatever `flags` say when there is no body."""
    sent = [] if body is None else [*JSON, "--data-binary", "@-"]
    done = subprocess.run(
        ["curl", "-sS", "-w", CODE, *sent, *flags, url],
        input=json.dumps(body).encode(), capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    content, _, code = done.stdout.rpartition(b"\n")
    status, _, kind = code.decode().partition(" ")
    return Answer(int(status), kind, content)


@pytest.mark.parametrize("flags", [["-N"], ["-N", "--http1.0"], ["-N", "--compressed"]], ids=str)
def test_a_stream(server: ServerProcess, flags: list[str]) -> None:
    answer = curl(f"{server.url}/generate_stream", native(max_new_tokens=8), *flags)
    assert (answer.status, answer.kind) == (200, "text/event-stream")
    events = parse_events(answer.body)
    assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events)


def test_a_chat_stream_ends_with_done(server: ServerProcess) -> None:
    answer = curl(f"{server.url}/v1/chat/completions", {**CHAT, "stream": True}, "-N")
    assert answer.body.endswith(b"\n\ndata: [DONE]\n\n")


def test_events_come_one_by_one(edge: EdgeServer) -> None:
    edge.engine.play = say(STORY, gap_s=0.05)
    command = ["curl", "-sSN", *JSON, "-d", json.dumps(native(max_new_tokens=8))]
    with subprocess.Popen([*command, f"{edge.url}/generate_stream"], stdout=-1) as process:
        assert process.stdout is not None
        times = [time.monotonic() for line in process.stdout if line.startswith(b"data: ")]
    assert len(times) == 8
    assert times[-1] - times[0] > 0.3  # seven gaps of 50 ms


def test_awkward_text(edge: EdgeServer) -> None:
    edge.engine.play = say(AWKWARD)
    body = native(AWKWARD, max_new_tokens=len(ids(AWKWARD)))
    streamed = parse_events(curl(f"{edge.url}/generate_stream", body, "-N").body)
    assert "".join(event["token"]["text"] for event in streamed) == AWKWARD
    whole = json.loads(curl(f"{edge.url}/generate", body).body)
    assert whole["generated_text"] == streamed[-1]["generated_text"] == AWKWARD


@pytest.mark.parametrize(
    ("path", "body", "flags", "status", "kind"),
    [
        ("/generate", native(temperature=-1.0), [], 422, "application/json"),
        ("/generate", {"prompt": "no inputs"}, [], 422, "text/plain; charset=utf-8"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, [], 422, "application/json"),
        ("/generate", None, ["-d", "{", *JSON], 400, "text/plain; charset=utf-8"),
        ("/generate", None, ["-d", "{}"], 415, "text/plain; charset=utf-8"),
        ("/generate", native("x" * 2_100_000), [], 413, "text/plain; charset=utf-8"),
        ("/generate", None, ["-X", "GET"], 405, ""),
        ("/no/such", None, [], 404, ""),
        ("/health", None, [], 200, ""),
        ("/health", None, ["--head"], 200, ""),
    ],
)
def test_statuses(
    edge: EdgeServer, path: str, body: object, flags: list[str], status: int, kind: str
) -> None:
    answer = curl(f"{edge.url}{path}", body, *flags)
    assert answer.status == status
    assert answer.kind == kind


def test_fail_is_an_exit_code(edge: EdgeServer) -> None:
    command = ["curl", "-sS", "--fail-with-body", *JSON, "-d", "{}", f"{edge.url}/generate"]
    done = subprocess.run(command, capture_output=True, timeout=30)
    assert done.returncode == 22
    assert b"inputs" in done.stdout


def test_it_need_not_wait_to_send_a_large_body(edge: EdgeServer) -> None:
    started = time.monotonic()
    body = native("word " * 50_000, truncate=5, max_new_tokens=2)
    answer = curl(f"{edge.url}/generate", body, "-H", "Expect: 100-continue", "--expect100-timeout",
                  "10")  # fmt: skip
    assert answer.status == 200
    assert time.monotonic() - started < 5


def test_keys(locked_edge: EdgeServer) -> None:
    url = f"{locked_edge.url}/generate_stream"
    body = native(max_new_tokens=2)
    bearer = ("-H", f"Authorization: Bearer {KEY}")
    assert curl(url, body, *bearer).status == 200
    assert curl(url, body, "--oauth2-bearer", KEY).status == 200
    for wrong in ([], ["-H", "Authorization: Bearer no"], ["-u", f"user:{KEY}"]):
        answer = curl(url, body, *wrong)
        assert (answer.status, answer.body) == (401, b"")
    chat = curl(f"{locked_edge.url}/v1/chat/completions", CHAT)
    assert (chat.status, json.loads(chat.body)["error"]["code"]) == (401, "invalid_api_key")
    assert curl(f"{locked_edge.url}/health").status == 200


def test_a_full_server(full_edge: EdgeServer) -> None:
    answer = curl(f"{full_edge.url}/generate", native())
    assert (answer.status, json.loads(answer.body)["error_type"]) == (429, "overloaded")
    (event,) = parse_events(curl(f"{full_edge.url}/generate_stream", native()).body)
    assert event["error_type"] == "overloaded"


def test_killing_it_frees_the_slot(edge: EdgeServer) -> None:
    edge.engine.play = say(STORY, gap_s=0.02)
    command = ["curl", "-sSN", *JSON, "-d", json.dumps(native(max_new_tokens=900))]
    with subprocess.Popen([*command, f"{edge.url}/generate_stream"], stdout=-1) as process:
        assert process.stdout is not None
        assert any(line.startswith(b"data: ") for line in process.stdout)  # up to the first event
        assert edge.engine.running == 1
        process.kill()
    until(lambda: edge.engine.running == 0)
