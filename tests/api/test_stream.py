"""`/generate_stream`, and POST `/` with `stream`: the contract's checklist on events."""

import json
from typing import Any

import pytest

from support.edge_server import EOS, STORY, EdgeServer, ids, parse_events, say
from support.scripted_engine import speak


def test_headers(server: EdgeServer) -> None:
    with server.stream("é😀", max_new_tokens=2) as response:
        headers = response.headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-cache"
        assert headers["x-accel-buffering"] == "no"
        assert headers["x-compute-type"] == "1-test"
        assert headers["x-compute-characters"] == "2"
        assert "x-prompt-tokens" not in headers and "x-compute-time" not in headers
        response.read()


def test_events_are_numbered_and_only_the_last_has_the_text(server: EdgeServer) -> None:
    events = server.events(max_new_tokens=7)
    assert [event["index"] for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert [event["generated_text"] for event in events[:-1]] == [None] * 6
    assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events)
    for event in events:
        assert list(event) == ["index", "token", "generated_text", "details"]
        assert list(event["token"]) == ["id", "text", "logprob", "special"]
        assert event["details"] is None


def test_details_are_in_the_last_event(server: EdgeServer) -> None:
    events = server.events("Hello there", details=True, max_new_tokens=3)
    assert [event["details"] for event in events[:-1]] == [None, None]
    assert list(events[-1]["details"].items()) == [
        ("finish_reason", "length"),
        ("generated_tokens", 3),
        ("seed", None),
        ("input_length", len(ids("Hello there"))),
    ]
    sampled = server.events(details=True, max_new_tokens=1, do_sample=True, seed=9)
    assert sampled[-1]["details"]["seed"] == 9


@pytest.mark.parametrize("per_delta", [1, 3, 100])
@pytest.mark.parametrize("stop", [[], ["f the s"]])
def test_a_stream_says_what_the_answer_says(
    server: EdgeServer, per_delta: int, stop: list[str]
) -> None:
    server.engine.play = speak([*ids(STORY), EOS], per_delta=per_delta)
    body = server.generate(details=True, stop=stop).json()
    events = server.events(details=True, stop=stop)
    assert [event["token"] for event in events] == body["details"]["tokens"]
    assert events[-1]["generated_text"] == body["generated_text"]
    assert events[-1]["details"]["finish_reason"] == body["details"]["finish_reason"]


def test_eos_is_an_event(server: EdgeServer) -> None:
    server.engine.play = say(" the end", eos=True)
    last = server.events(details=True)[-1]
    assert last["token"]["text"] == "<|endoftext|>" and last["token"]["special"]
    assert last["generated_text"] == " the end"
    assert last["details"]["finish_reason"] == "eos_token"


def test_the_prompt_is_in_the_last_text_only(server: EdgeServer) -> None:
    events = server.events("Q:", return_full_text=True, max_new_tokens=2)
    said = "".join(event["token"]["text"] for event in events)
    assert events[-1]["generated_text"] == "Q:" + said
    assert server.events("Q:", max_new_tokens=2)[-1]["generated_text"] == said


def test_the_legacy_shape_streams_with_the_prompt_in_front(server: EdgeServer) -> None:
    events = server.events("Q:", path="/", max_new_tokens=2)
    assert events[-1]["generated_text"].startswith("Q:")
    assert len(events) == 2


def test_top_tokens_are_flat_and_absent_when_not_asked_for(server: EdgeServer) -> None:
    events = server.events(top_n_tokens=2, max_new_tokens=3)
    for event in events:
        assert [entry["id"] for entry in event["top_tokens"]] == [event["token"]["id"], 100]
        assert list(event) == ["index", "token", "top_tokens", "generated_text", "details"]


def test_an_emoji_comes_with_its_last_byte(server: EdgeServer) -> None:
    said = ids("😀")
    assert len(said) == 4
    server.engine.play = speak(said)
    events = server.events(max_new_tokens=4)
    assert [event["token"]["text"] for event in events] == ["", "", "", "😀"]
    assert events[-1]["generated_text"] == "😀"


def test_a_delta_of_several_tokens_is_several_events_in_one_write(server: EdgeServer) -> None:
    server.engine.play = speak(ids(STORY), per_delta=4)
    with server.stream(max_new_tokens=8) as response:
        chunks = list(response.iter_raw())
    events = parse_events(b"".join(chunks))
    assert [event["index"] for event in events] == list(range(1, 9))
    assert len(chunks) <= 3


def test_the_first_event_comes_before_the_last_token_is_computed(server: EdgeServer) -> None:
    server.engine.play = say(STORY, gap_s=0.05)
    before = server.engine.spoken_tokens
    with server.stream(max_new_tokens=10) as response:
        first = next(response.iter_raw())
        assert server.engine.spoken_tokens - before < 10
    assert [event["index"] for event in parse_events(first)] == [1]


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"best_of": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"decoder_input_details": True}, "decoder_input_details"),
        ({"temperature": 0}, "temperature"),
        ({"max_new_tokens": 1000}, "max_new_tokens"),
        ({"grammar": {"type": "json", "value": {}}}, "grammar"),
    ],
)
def test_refused_values_are_one_event(
    server: EdgeServer, parameters: dict[str, Any], name: str
) -> None:
    before = server.value("tgi_request_failure", err="validation")
    (event,) = server.events(**parameters)
    assert list(event) == ["error", "error_type"]
    assert event["error_type"] == "validation" and f"`{name}`" in event["error"]
    assert server.value("tgi_request_failure", err="validation") == before + 1


def test_line_separators_do_not_split_events(server: EdgeServer) -> None:
    said = "a\u2028b\x85c\n\r\n"
    server.engine.play = say(said)
    with server.stream(max_new_tokens=len(ids(said))) as response:
        lines = [line for line in response.iter_lines() if line]
    assert json.loads(lines[-1][6:])["generated_text"] == said


def test_a_silent_stream_gets_comments() -> None:
    with EdgeServer(say(STORY, first_s=0.35), keep_alive_s=0.1) as server:
        with server.stream(max_new_tokens=2) as response:
            content = response.read()
        assert content.startswith(b":\n\n:\n\n")
        assert len(parse_events(content)) == 2


def test_metrics_of_a_stream(server: EdgeServer) -> None:
    before = server.value("tgi_request_success"), server.value("tgi_request_count")
    server.events(max_new_tokens=4)
    after = server.value("tgi_request_success"), server.value("tgi_request_count")
    assert after == (before[0] + 1, before[1] + 1)
