"""Node's own fetch with a stream reader against a real server: streams, abort, errors, any text."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.awkward import AWKWARD
from support.edge_server import EdgeServer, say, until
from tiercel.bench.server import ServerProcess

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed")


def fetch(url: str, body: object, **more: Any) -> dict[str, Any]:
    """What the client saw."""
    script = Path(__file__).with_name("stream.mjs")
    task = json.dumps({"url": url, "body": body, **more})
    done = subprocess.run(
        [str(NODE), str(script), task], capture_output=True, text=True, timeout=60, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def native(inputs: str, **parameters: Any) -> dict[str, Any]:
    return {"inputs": inputs, "parameters": parameters}


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "stream": True, **fields}


def documents(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream that ended well."""
    assert (answer["status"], answer["type"], answer["rest"]) == (200, "text/event-stream", "")
    return [json.loads(data) for data in answer["events"] if data != "[DONE]"]


CANCELLED = r'^tiercel_requests_cancelled_total{stage="decode"} (\S+)$'


def cancelled(server: ServerProcess) -> float:
    found = re.search(CANCELLED, server.get("/metrics")[1], re.M)
    assert found
    return float(found[1])


def test_a_stream_arrives_in_many_pieces(server: ServerProcess) -> None:
    answer = fetch(f"{server.url}/generate_stream", native("Call me", max_new_tokens=100))
    events = documents(answer)
    assert [event["index"] for event in events] == list(range(1, 101))
    assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events)
    assert answer["chunks"] > 10  # it was not held back to the end


def test_abort_cancels_on_the_server(server: ServerProcess) -> None:
    before = cancelled(server)
    body = native("Call me", max_new_tokens=900)
    answer = fetch(f"{server.url}/generate_stream", body, stopAfter=3)
    assert answer["failure"] == "AbortError"
    assert 3 <= len(answer["events"]) < 900
    until(lambda: cancelled(server) == before + 1)


def test_errors(server: ServerProcess) -> None:
    url = f"{server.url}/generate_stream"
    (event,) = documents(fetch(url, native("Call me", temperature=-1.0)))
    assert event["error_type"] == "validation"
    refused = fetch(url, {"prompt": "no inputs"})
    assert (refused["status"], refused["type"]) == (422, "text/plain; charset=utf-8")
    assert "inputs" in refused["text"]


def test_chat_streams(server: ServerProcess) -> None:
    url = f"{server.url}/v1/chat/completions"
    answer = fetch(url, chat("Who are you?", max_tokens=20, seed=1))
    assert answer["events"][-1] == "[DONE]"
    chunks = documents(answer)
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    whole = fetch(url, chat("Who are you?", max_tokens=20, seed=1) | {"stream": False})
    assert json.loads(whole["text"])["choices"][0]["message"]["content"] == text
    refused = fetch(url, chat("Who are you?", top_p=7.0))
    assert refused["status"] == 422
    assert "top_p" in json.loads(refused["text"])["error"]["message"]


@pytest.mark.parametrize("per_delta", [1, 3])
def test_awkward_text_arrives_whole(per_delta: int) -> None:
    with EdgeServer(
        say(AWKWARD, eos=True, per_delta=per_delta), max_input_tokens=900, max_total_tokens=2_000
    ) as edge:
        answer = fetch(f"{edge.url}/generate_stream", native(AWKWARD, max_new_tokens=900))
        events = documents(answer)
        spoken = [each["token"] for each in events if not each["token"]["special"]]
        assert "".join(token["text"] for token in spoken) == AWKWARD
        assert events[-1]["generated_text"] == AWKWARD
        for data in answer["events"]:  # where a careless client would cut
            assert re.search("[\r\n\x85\u2028\u2029]", data) is None


@pytest.mark.parametrize("per_delta", [1, 3])
def test_awkward_text_arrives_whole_in_a_chat(per_delta: int) -> None:
    with EdgeServer(
        say(AWKWARD, eos=True, per_delta=per_delta), max_input_tokens=900, max_total_tokens=2_000
    ) as edge:
        body = chat(AWKWARD, max_tokens=500, logprobs=True, top_logprobs=2)
        chunks = documents(fetch(f"{edge.url}/v1/chat/completions", body))
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == AWKWARD
