"""SageMaker's and Vertex AI's routes: shapes, errors, permits, and paths from the environment."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from support.edge_server import STORY, EdgeServer, parse_events, say, until
from tiercel.api.platforms.vertex import check_routes
from tiercel.errors import ConfigError
from tiercel.wire.messages import TokenDelta
from tiercel.wire.request import GenerationRequest

FOUR = {"max_new_tokens": 4}
SAID = " a story of"
HELLO = [{"role": "user", "content": "Hello"}]


def test_invocations_answer_as_the_route_of_their_shape(server: EdgeServer) -> None:
    native = server.post("/invocations", {"inputs": "Hi", "parameters": FOUR})
    assert native.json() == [{"generated_text": "Hi" + SAID}]
    assert native.headers["x-generated-tokens"] == "4"
    chat = server.post("/invocations", {"messages": HELLO, "max_tokens": 4}).json()
    assert chat["object"] == "chat.completion"
    text = server.post("/invocations", {"prompt": "Hi", "max_tokens": 4}).json()
    assert text["choices"][0]["text"] == SAID
    both = {"inputs": "Hi", "messages": HELLO, "prompt": "Hi", "parameters": FOUR}
    assert server.post("/invocations", both).json() == [{"generated_text": "Hi" + SAID}]


def test_invocations_stream(server: EdgeServer) -> None:
    body = {"inputs": "Hi", "parameters": FOUR, "stream": True}
    events = parse_events(server.post("/invocations", body).content)
    assert [event["index"] for event in events] == [1, 2, 3, 4]
    chat = server.post("/invocations", {"messages": HELLO, "max_tokens": 4, "stream": True})
    assert chat.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"text": "x"}, 422, "one of the fields `inputs`, `messages`, `prompt` is needed"),
        ([1], 422, "Failed to deserialize"),
        ({"inputs": 1}, 422, "inputs"),
    ],
)
def test_invocations_refuse_other_bodies(
    server: EdgeServer, body: object, status: int, part: str
) -> None:
    response = server.post("/invocations", body)
    assert response.status_code == status
    assert part in response.text


def test_invocations_refuse_what_is_no_json(server: EdgeServer) -> None:
    json_type = {"content-type": "application/json"}
    assert server.http.post("/invocations", content=b"{", headers=json_type).status_code == 400
    assert server.http.post("/invocations", content=b"{}").status_code == 415
    big = b'{"inputs":"' + b"x" * 2_000_000 + b'"}'
    assert server.http.post("/invocations", content=big, headers=json_type).status_code == 413


def test_errors_have_the_shape_of_the_answer(server: EdgeServer) -> None:
    native = server.post("/invocations", {"inputs": ""}).json()
    assert native["error_type"] == "validation" and isinstance(native["error"], str)
    for body in ({"messages": HELLO, "temperature": -1}, {"prompt": "x", "temperature": -1}):
        error = server.post("/invocations", body).json()["error"]
        assert error["type"] == "invalid_request_error" and error["param"] == "temperature"


def test_a_client_that_leaves_invocations_stops_its_sequence() -> None:
    with EdgeServer(say(STORY, gap_s=0.05)) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.post("/invocations", {"inputs": "Hi", "parameters": {}}, timeout=0.3)
        until(lambda: server.engine.aborted != [])


def test_vertex_predicts_for_every_instance(server: EdgeServer) -> None:
    instances = [
        {"inputs": "One", "parameters": FOUR},
        {"inputs": "Two", "parameters": {"max_new_tokens": 2}},
        {"messages": HELLO, "max_tokens": 4},
    ]
    response = server.post("/vertex", {"instances": instances})
    assert response.json() == {"predictions": [SAID, " a st", SAID]}
    assert "x-compute-type" not in response.headers


@pytest.mark.parametrize("stop", [["the"], ["nothing"], ["sea and", " of the"], [""]])
def test_vertex_predicts_what_chat_would_say(server: EdgeServer, stop: list[str]) -> None:
    """Up to a stop string and without it; `inputs` end with it, as on `/generate`."""
    chat = {"messages": HELLO, "max_tokens": 12, "stop": stop}
    content = server.post("/v1/chat/completions", chat).json()["choices"][0]["message"]["content"]
    text = {"inputs": "Hi", "parameters": {"max_new_tokens": 12, "stop": stop}}
    generated = server.post("/generate", text).json()["generated_text"]
    response = server.post("/vertex", {"instances": [chat, text]})
    assert response.json() == {"predictions": [content, generated]}
    assert generated.startswith(content)


def test_vertex_samples_unless_told_otherwise(server: EdgeServer) -> None:
    for parameters, sampled in ((FOUR, True), ({**FOUR, "do_sample": False}, False)):
        server.post("/vertex", {"instances": [{"inputs": "Hi", "parameters": parameters}]})
        assert server.engine.requests[-1].sampling.do_sample is sampled
    # TGI dropped all others.
    parameters = {**FOUR, "temperature": 0.5, "top_k": 3, "seed": 11, "stop": ["of"]}
    server.post("/vertex", {"instances": [{"inputs": "Hi", "parameters": parameters}]})
    sampling = server.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 3, 11)


def test_vertex_refusals(server: EdgeServer) -> None:
    empty = server.post("/vertex", {"instances": []})
    assert empty.status_code == 422
    assert empty.json() == dict.fromkeys(("error", "error_type"), "Input validation error")
    wrong = server.post("/vertex", {"instances": [{"inputs": "x"}, {"inputs": 3}]})
    assert wrong.status_code == 422 and "instances.1.inputs" in wrong.text
    value = server.post("/vertex", {"instances": [{"inputs": "x", "parameters": {"top_k": 0}}]})
    assert (value.status_code, value.json()["error_type"]) == (422, "validation")
    many = server.post("/vertex", {"instances": [{"inputs": "x"}] * 5})
    assert (many.status_code, many.json()["error_type"]) == (422, "batch size exceeded")


async def _failing(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
    yield TokenDelta(request.id, [], error="device lost", error_type="generation")


def test_one_failing_instance_fails_the_call_and_stops_the_others() -> None:
    endless = say(STORY, gap_s=0.01)

    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        source = _failing if request.max_new_tokens == 7 else endless
        await asyncio.sleep(0.05)
        async for delta in source(request):
            yield delta

    with EdgeServer(play) as server:
        failing = {"inputs": "x", "parameters": {"max_new_tokens": 7}}
        response = server.post("/vertex", {"instances": [{"inputs": "x"}, failing]})
        assert response.status_code == 500
        assert response.json() == dict.fromkeys(("error", "error_type"), "Incomplete generation")
        until(lambda: server.engine.running == 0)


def test_every_instance_takes_a_permit() -> None:
    with EdgeServer(max_concurrent_requests=2) as server:
        instance = {"inputs": "x", "parameters": FOUR}
        assert server.post("/vertex", {"instances": [instance] * 2}).status_code == 200
        assert server.post("/vertex", {"instances": [instance] * 3}).status_code == 429
        best = {"inputs": "x", "parameters": {**FOUR, "best_of": 2, "do_sample": True}}
        assert server.post("/vertex", {"instances": [best]}).status_code == 200
        assert server.post("/vertex", {"instances": [best, instance]}).status_code == 429


def test_vertex_paths_of_the_environment() -> None:
    paths = {"health_route": "/v1/endpoints/7", "predict_route": "/v1/endpoints/7:predict"}
    with EdgeServer(**paths) as server:
        assert server.http.get("/v1/endpoints/7").status_code == 200
        body = {"instances": [{"inputs": "x", "parameters": FOUR}]}
        assert server.post("/v1/endpoints/7:predict", body).json() == {"predictions": [SAID]}
        assert server.post("/vertex", body).status_code == 200
        empty = server.post("/v1/endpoints/7:predict", {"instances": []})
        assert empty.json()["error"] == "Input validation error"
        chat = server.post("/v1/endpoints/7:predict", {"instances": [{"messages": []}]})
        assert chat.headers["content-type"].startswith("text/plain")
        server.engine.is_healthy = False
        assert server.http.get("/v1/endpoints/7").status_code == 503


@pytest.mark.parametrize(
    ("health", "predict", "named"),
    [
        ("/info", None, "AIP_HEALTH_ROUTE"),
        ("/v2/models/x", None, "AIP_HEALTH_ROUTE"),
        (None, "/generate", "AIP_PREDICT_ROUTE"),
        (None, "/v2/models/x/y/infer", "AIP_PREDICT_ROUTE"),
    ],
)
def test_vertex_paths_may_not_shadow_others(
    health: str | None, predict: str | None, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        check_routes(health, predict)


def test_vertex_paths_may_be_our_own() -> None:
    check_routes("/health", "/vertex")
    check_routes("/predict", "/predict")
    with EdgeServer(health_route="/ping", predict_route="/vertex") as server:
        assert server.http.get("/ping").status_code == 200
