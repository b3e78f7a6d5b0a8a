"""KServe's v2 protocol and Triton's generate extension over the real edge."""

import time
from typing import Any

import pytest

from support.edge_server import STORY, EdgeServer, parse_events, say

FOUR = {"max_new_tokens": 4}
SAID = " a story of"
NAME = "tiiuae/falcon-7b"
MODEL = f"/v2/models/{NAME}"


def infer(server: EdgeServer, *data: object, path: str = MODEL, **more: Any) -> Any:
    inputs = [{"name": "in", "shape": [1], "datatype": "BYTES", "data": each} for each in data]
    return server.post(f"{path}/infer", {"inputs": inputs, "parameters": FOUR, **more})


def test_metadata_and_health(server: EdgeServer) -> None:
    get = server.http.get
    assert get("/v2").json()["name"] == "text-generation-inference"
    assert {"health", "models", "metrics"} <= set(get("/v2").json()["extensions"])
    assert get("/v2/health/live").json() == {"live": True}
    for path in ("/v2/health/ready", f"{MODEL}/ready", f"{MODEL}/versions/3/ready"):
        assert get(path).json() == {"live": True, "ready": True}
    assert (get(MODEL).json()["name"], get(MODEL).json()["version"]) == (NAME, "1")
    version = get(f"{MODEL}/versions/3").json()
    assert (version["name"], version["version"]) == (NAME, "3")
    assert {"infer", "ready"} <= set(version["extensions"])


def test_ready_is_not_live() -> None:
    with EdgeServer() as server:
        server.engine.is_healthy = False
        assert server.http.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", f"{MODEL}/ready"):
            response = server.http.get(path)
            assert (response.status_code, response.json()["error_type"]) == (503, "healthcheck")


@pytest.mark.parametrize("verb", ["infer", "generate", "generate_stream"])
def test_verbs_take_post_only(server: EdgeServer, verb: str) -> None:
    response = server.http.get(f"{MODEL}/{verb}")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_bytes_in_bytes_out(server: EdgeServer) -> None:
    answer = infer(server, list("Hé".encode()), id="7", outputs=[{"name": "out"}]).json()
    said = list(SAID.encode())
    assert answer == {
        "id": "7",
        "model_name": NAME,
        "model_version": "1",
        "outputs": [{"name": "out", "shape": [1, len(said)], "datatype": "BYTES", "data": said}],
    }
    assert server.engine.requests[-1].token_ids


def test_strings_in_strings_out(server: EdgeServer) -> None:
    answer = infer(server, ["One", "Two"], [["Three"]], path=f"{MODEL}/versions/v2").json()
    assert "id" not in answer
    assert answer["model_version"] == "v2"
    shapes = [(each["name"], each["shape"], each["data"]) for each in answer["outputs"]]
    assert shapes == [("text_output", [2], [SAID, SAID]), ("text_output", [1, 1], [SAID])]


def test_infer_refusals(server: EdgeServer) -> None:
    mismatch = infer(server, ["One"], outputs=[])
    assert (mismatch.status_code, mismatch.json()["error_type"]) == (422, "length mismatch")
    utf8 = infer(server, [255])
    assert (utf8.status_code, utf8.json()["error_type"]) == (422, "utf8")
    assert infer(server).status_code == 422
    assert infer(server, [256]).status_code == 422
    assert infer(server, ["x"] * 5).json()["error_type"] == "batch size exceeded"
    assert infer(server, [""]).json()["error_type"] == "validation"
    assert infer(server, []).json()["error_type"] == "validation"


def test_a_long_tensor_of_strings_is_refused_at_once(server: EdgeServer) -> None:
    """It took 9 s of the event loop to collect 600,000 errors for each of the other forms."""
    started_s = time.monotonic()
    response = infer(server, ["x"] * 350_000)
    assert response.status_code == 422
    assert time.monotonic() - started_s < 3.0


def test_parameters_default_as_on_generate(server: EdgeServer) -> None:
    """Without `parameters` a request is sampled, with `{}` it is greedy."""
    server.engine.play = say(STORY, eos=True)
    for more, sampled in (({}, True), ({"parameters": {}}, False)):
        server.post(f"{MODEL}/generate", {"text_input": "x", **more})
        assert server.engine.requests[-1].sampling.do_sample is sampled


def test_generate(server: EdgeServer) -> None:
    body = {"id": "a", "text_input": "Hi", "parameters": {"max_tokens": 4, "temperature": 0.5}}
    answer = server.post(f"{MODEL}/generate", body).json()
    assert answer == {"id": "a", "model_name": NAME, "model_version": "1", "text_output": SAID}
    assert server.engine.requests[-1].sampling.temperature == 0.5


def test_generate_stream(server: EdgeServer) -> None:
    server.engine.play = say(STORY, eos=True)
    response = server.post(f"{MODEL}/versions/2/generate_stream", {"text_input": "Hi"})
    assert response.headers["content-type"] == "text/event-stream"
    events = parse_events(response.content)
    assert "".join(event["text_output"] for event in events) == STORY
    assert {event["model_version"] for event in events} == {"2"}


def test_a_stream_that_cannot_begin_has_a_status(server: EdgeServer) -> None:
    body = {"text_input": "Hi", "parameters": {"temperature": 0.0}}
    response = server.post(f"{MODEL}/generate_stream", body)
    assert (response.status_code, response.json()["error_type"]) == (422, "validation")


def test_separators_are_escaped() -> None:
    with EdgeServer(say("\u2028x")) as server:
        body = {"text_input": "Hi", "parameters": {"max_new_tokens": 12}}
        for verb in ("generate", "generate_stream"):
            response = server.post(f"{MODEL}/{verb}", body)
            assert "\u2028" not in response.text and "\\u2028" in response.text
