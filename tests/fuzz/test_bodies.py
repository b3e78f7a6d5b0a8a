"""R-22: bodies that hypothesis makes up, to every route that takes one: no 5xx, nothing left."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.edge_server import EdgeServer, say, until

CASES = int(os.environ.get("FUZZ_CASES", "8")) * 4
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ROUTES = (
    "/",
    "/generate",
    "/generate_stream",
    "/tokenize",
    "/chat_tokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/invocations",
    "/vertex",
)
FIELDS = (
    "inputs", "parameters", "stream", "messages", "role", "content", "prompt", "instances", "n",
    "best_of", "temperature", "top_k", "top_p", "typical_p", "do_sample", "max_new_tokens",
    "max_tokens", "stop", "truncate", "watermark", "details", "decoder_input_details", "seed",
    "top_n_tokens", "repetition_penalty", "frequency_penalty", "presence_penalty", "adapter_id",
    "logprobs", "top_logprobs", "logit_bias", "echo", "suffix", "tools", "tool_choice", "model",
    "stream_options", "include_usage", "type", "function", "name", "arguments", "text",
)  # fmt: skip
NUMBERS = [0, 1, -1, 2, 0.5, 1.0, -0.0, 2**31, -(2**31), 2**32, 2**63, 2**64, 1e38, 1e39, -1e308]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(
        ["user", "function", "text", "json", "auto", "\u2028", "\x00", "\ufeff", "data: x"]
    ),
)
NAMES = st.one_of(st.sampled_from(FIELDS), st.text(max_size=5))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=5)),
    max_leaves=25,
)
PARAMETERS = st.dictionaries(st.sampled_from(FIELDS), SCALARS | st.lists(SCALARS, max_size=3))
# What would be answered, with something strange in it.
GENERATE = st.fixed_dictionaries(
    {"inputs": st.text(max_size=30)}, optional={"parameters": PARAMETERS, "stream": st.booleans()}
)
CHAT = st.builds(
    lambda fields, text: {**fields, "messages": [{"role": "user", "content": text}]},
    PARAMETERS,
    st.text(max_size=30),
)
COMPLETION = st.builds(
    lambda fields, text: {**fields, "prompt": text}, PARAMETERS, st.text(max_size=30)
)
DOCUMENTS = st.one_of(
    VALUES, GENERATE, CHAT, COMPLETION, st.builds(lambda one: {"instances": [one]}, GENERATE | CHAT)
)
BODIES = st.one_of(
    DOCUMENTS.map(lambda document: json.dumps(document).encode()),
    st.binary(max_size=100),
    DOCUMENTS.map(lambda document: json.dumps(document).encode()[:-1]),
)
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[EdgeServer]:
    with EdgeServer(say(" a", eos=True)) as server:
        yield server


def assert_in_shape(path: str, status: int, content_type: str, content: bytes) -> None:
    """Errors are JSON with `error` and `error_type`, or one plain sentence, never a traceback."""
    if status < 400:
        return
    assert status in (400, 413, 415, 422, 424, 429, 503), content
    assert b"Traceback" not in content
    document: dict[str, Any]
    if path.startswith("/v1/"):
        document = json.loads(content)
        assert set(document) == {"error", "error_type"}
        assert {"message", "type", "param", "code"} <= set(document["error"])
    elif content_type == "application/json":
        document = json.loads(content)
        assert set(document) == {"error", "error_type"}
        if isinstance(document["error"], dict):  # `/invocations` speaks OpenAI's dialect, too
            assert path == "/invocations"
            assert {"message", "type", "param", "code"} <= set(document["error"])
        else:
            assert type(document["error"]) is type(document["error_type"]) is str
    else:
        assert content_type.startswith("text/plain")
        assert content.startswith(b"Failed to ")


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("path", ROUTES)
def test_made_up_bodies(fuzzed: EdgeServer, path: str) -> None:
    @FUZZ
    @given(BODIES)
    def one(body: bytes) -> None:
        answer = fuzzed.http.post(path, content=body, headers=JSON)
        content_type = answer.headers.get("content-type", "")
        assert_in_shape(path, answer.status_code, content_type, answer.content)

    one()
    until(lambda: fuzzed.state.in_flight == 0)
    until(lambda: fuzzed.engine.running == 0)
    assert fuzzed.http.get("/health").status_code == 200
