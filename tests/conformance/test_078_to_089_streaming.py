"""Statements 78 to 89 of the contract's section 11: `/generate_stream`."""

import json
from typing import Any

import pytest

from support.conformance import KEEP_ALIVE_S, Api, near, until
from support.conformance_events import COMMENT
from support.conformance_model import EMOJI, EOS
from tiercel.settings import Settings

PROMPT = "Hello there"
SHORT: dict[str, Any] = {"inputs": PROMPT, "parameters": {"max_new_tokens": 6}}


def test_078_headers_of_a_stream(api: Api) -> None:
    response = api.post("/generate_stream", SHORT)
    headers = response.headers
    assert response.status_code == 200
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-compute-type"]
    assert headers["x-compute-characters"] == str(len(PROMPT))
    assert "x-prompt-tokens" not in headers
    assert "x-compute-time" not in headers


def test_079_how_events_are_framed(api: Api) -> None:
    """Byte by byte, comments aside, which a slow machine may cause."""
    content = api.post("/generate_stream", SHORT).content
    *blocks, rest = content.split(b"\n\n")
    blocks = [block for block in blocks if block != COMMENT]
    assert rest == b""
    assert len(blocks) == 6
    for block in blocks:
        assert block.startswith(b'data: {"index":')
        assert b"\n" not in block
        json.loads(block[len(b"data: ") :])
    assert b"[DONE]" not in content


def test_080_events_are_counted(api: Api) -> None:
    events = api.events(PROMPT, max_new_tokens=9).data
    assert [event["index"] for event in events] == list(range(1, 10))
    assert [event["generated_text"] is None for event in events] == [True] * 8 + [False]
    first = events[0]
    assert list(first) == ["index", "token", "generated_text", "details"]
    assert set(first["token"]) == {"id", "text", "logprob", "special"}


def test_081_details_of_a_stream(api: Api) -> None:
    *others, last = api.events("<bye>", details=True).data
    assert last["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": 3,
        "seed": None,
        "input_length": 1,
    }
    assert {event["details"] for event in others} == {None}
    sampled = api.events(PROMPT, details=True, do_sample=True, seed=9, max_new_tokens=2).data
    assert sampled[-1]["details"]["seed"] == 9
    assert sampled[-1]["details"]["finish_reason"] == "length"
    assert {event["details"] for event in api.events(PROMPT, max_new_tokens=3).data} == {None}


@pytest.mark.parametrize("prompt", [PROMPT, "<bye>", "<smile>"])
def test_082_a_stream_has_the_tokens_of_the_answer(api: Api, prompt: str) -> None:
    events = api.events(prompt, max_new_tokens=30)
    tokens = api.details(prompt, max_new_tokens=30)["tokens"]
    assert near([event["token"] for event in events.data], tokens)
    sampled = {"max_new_tokens": 30, "do_sample": True, "seed": 5}
    assert api.events(prompt, **sampled).ids == api.ids(prompt, **sampled)


@pytest.mark.parametrize("prompt", [PROMPT, "<bye>"])
def test_083_a_stream_has_the_text_of_the_answer(api: Api, prompt: str) -> None:
    text = api.generate(prompt, max_new_tokens=12)["generated_text"]
    plain = api.events(prompt, max_new_tokens=12)
    assert plain.data[-1]["generated_text"] == text
    full = api.events(prompt, max_new_tokens=12, return_full_text=True)
    assert full.data[-1]["generated_text"] == prompt + text
    assert full.text == plain.text
    assert full.text.removesuffix(EOS) == text


def test_084_best_tokens_of_an_event(api: Api) -> None:
    events = api.events(PROMPT, top_n_tokens=2, max_new_tokens=5).data
    whole = api.details(PROMPT, top_n_tokens=2, max_new_tokens=5)["top_tokens"]
    assert near([event["top_tokens"] for event in events], whole)
    assert all(len(event["top_tokens"]) == 2 for event in events)
    assert not any("top_tokens" in event for event in api.events(PROMPT, max_new_tokens=5).data)


def test_085_an_emoji_of_four_tokens(api: Api) -> None:
    events = api.events("<smile>")
    assert [event["token"]["text"] for event in events.data] == ["", "", "", EMOJI, EOS]
    assert events.data[-1]["generated_text"] == EMOJI
    assert len(EMOJI.encode()) == 4


def test_086_what_cannot_be_streamed(api: Api) -> None:
    for name, value in (("best_of", 2), ("decoder_input_details", True)):
        (event,) = api.events(PROMPT, **{name: value, "do_sample": True}).data
        assert set(event) == {"error", "error_type"}
        assert event["error_type"] == "validation"
        assert f"`{name}`" in event["error"]


def test_087_a_wrong_value_is_an_event(api: Api) -> None:
    events = api.events(PROMPT, temperature=0)
    (event,) = events.data
    assert set(event) == {"error", "error_type"}
    assert event["error_type"] == "validation"
    assert "`temperature`" in event["error"]
    assert not events.done


def test_088_a_comment_while_nothing_comes(long_api: Api) -> None:
    """The 15 s of the contract are a setting, here half a second; the slow token is a stopped
    engine.
    """
    assert Settings.model_fields["keep_alive"].default == 15
    assert KEEP_ALIVE_S < 15
    body = {"inputs": "<count>", "parameters": {"max_new_tokens": 400}}
    with long_api.open_stream("/generate_stream", body) as (_, pieces), long_api.paused():
        silent = next(piece for piece in pieces if piece.startswith(b":"))
        assert silent == b":\n\n"
        assert next(pieces) == b":\n\n"
    long_api.wait_for("tgi_batch_current_size", lambda running: running == 0)
    assert len(long_api.events("<count>", max_new_tokens=400).data) == 400


def test_089_a_closed_connection_frees_its_slot(long_api: Api) -> None:
    dropped = long_api.failures("dropped")
    finished = long_api.metrics()["tgi_request_success"]
    body = {"inputs": "<count>", "parameters": {"max_new_tokens": 2000}}
    with long_api.open_stream("/generate_stream", body) as (response, _):
        assert response.status_code == 200
        assert long_api.try_generate(PROMPT).status_code == 429
    until(lambda: long_api.try_generate("<end>").status_code == 200, timeout_s=3)
    assert long_api.failures("dropped") == dropped + 1
    assert long_api.metrics()["tgi_request_success"] == finished + 1
