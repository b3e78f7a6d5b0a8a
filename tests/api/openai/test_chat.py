"""Chats that are answered in one piece: shape, fields, stops, logprobs, limits."""

from typing import Any

import httpx
import pytest

import tiercel
from support.chats import CHAT, HI, chat, message, refusal
from support.edge_server import EOS, STORY, TOKENIZER, EdgeServer, ids, say, until
from support.scripted_engine import speak
from tiercel.text.chat import ChatTemplate
from tiercel.text.chat_source import TemplateSource

USER_STOPS = ("\nUser:", "\n\nUser:")


def _template(text: str) -> ChatTemplate:
    return ChatTemplate(TemplateSource(text, "a test"))


def test_the_answer_has_the_contracts_shape(server: EdgeServer) -> None:
    response = chat(server, model="some/name", max_tokens=4)
    body = response.json()
    assert list(body) == [
        "object", "id", "created", "model", "system_fingerprint", "choices", "usage",
    ]  # fmt: skip
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "some/name"
    assert body["system_fingerprint"] == f"{tiercel.__version__}-native"
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["message"] == {"role": "assistant", "content": choice["message"]["content"]}
    assert choice["message"]["content"] == TOKENIZER.decode(ids(STORY)[:4])
    assert choice["logprobs"] is None
    assert choice["finish_reason"] == "length"
    usage = body["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert response.headers["x-prompt-tokens"] == str(usage["prompt_tokens"])
    assert response.headers["x-generated-tokens"] == "4"
    prompt = "User: Hi\n\nAssistant:"
    assert response.headers["x-compute-characters"] == str(len(prompt))
    assert server.engine.requests[-1].token_ids == TOKENIZER.encode(
        prompt, add_special_tokens=False
    )


def test_ids_are_unique(server: EdgeServer) -> None:
    assert chat(server).json()["id"] != chat(server).json()["id"]


@pytest.mark.parametrize("model", [None, "", "tgi"])
def test_without_a_model_the_served_one_is_named(server: EdgeServer, model: str | None) -> None:
    assert chat(server, model=model).json()["model"] == "test/model"


def test_eos_is_a_stop_without_text(server: EdgeServer) -> None:
    choice = message(server)
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == STORY


def test_the_limit_by_both_names(server: EdgeServer) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        assert chat(server, **{name: 3}).json()["usage"]["completion_tokens"] == 3
    refused = refusal(chat(server, max_tokens=3, max_completion_tokens=3))
    assert "`max_tokens`" in refused["message"]


def test_stop_text_is_cut_off(server: EdgeServer) -> None:
    for stop in (" the", [" nothing", " the"]):
        choice = message(server, stop=stop)
        assert choice["message"]["content"] == " a story of"
        assert choice["finish_reason"] == "stop"


def test_the_templates_own_stops_are_added(server: EdgeServer) -> None:
    server.engine.play = say(" Hello.\n\nUser: and now?", eos=True)
    choice = message(server, stop=list("vwxy"))
    assert choice["message"]["content"] == " Hello."
    assert choice["finish_reason"] == "stop"


def test_too_many_stops(server: EdgeServer) -> None:
    refused = refusal(chat(server, stop=list("vwxyz")))
    assert refused["param"] == "stop"
    assert "4" in refused["message"] and "5" in refused["message"]


def test_fields_reach_the_sampler(server: EdgeServer) -> None:
    message(
        server, temperature=0.5, top_p=0.25, seed=-1, presence_penalty=0.5, frequency_penalty=-2,
        logit_bias={"5": 100, "6": -100}, top_k=7, typical_p=0.5, repetition_penalty=1.5,
    )  # fmt: skip
    sampling = server.engine.requests[-1].sampling
    assert sampling.do_sample
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 7)
    assert (sampling.typical_p, sampling.repetition_penalty) == (0.5, 1.5)
    assert (sampling.presence_penalty, sampling.count_penalty) == (0.5, -2.0)
    assert sampling.frequency_penalty == 0.0
    assert sampling.logit_bias == [(5, 100.0), (6, -100.0)]
    assert sampling.seed == 2**64 - 1


def test_temperature_zero_is_greedy_and_none_is_sampled(server: EdgeServer) -> None:
    message(server, temperature=0, top_p=0.5, top_k=3)
    sampling = server.engine.requests[-1].sampling
    assert not sampling.do_sample
    assert (sampling.top_p, sampling.top_k) == (1.0, 0)
    message(server)
    sampling = server.engine.requests[-1].sampling
    assert (sampling.do_sample, sampling.temperature) == (True, 1.0)


def test_values_that_mean_off(server: EdgeServer) -> None:
    message(server, top_p=1, typical_p=1.0, top_k=-1)
    sampling = server.engine.requests[-1].sampling
    assert (sampling.top_p, sampling.typical_p, sampling.top_k) == (1.0, 1.0, 0)


def test_n_choices_have_their_own_seeds(server: EdgeServer) -> None:
    before = len(server.engine.requests)
    response = chat(server, n=3, seed=7, max_tokens=2)
    body = response.json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    seeds = [request.sampling.seed for request in server.engine.requests[before:]]
    assert seeds == [7, 8, 9]
    assert body["usage"]["completion_tokens"] == 6
    prompt = len(server.engine.requests[-1].token_ids)
    assert body["usage"]["prompt_tokens"] == prompt


def test_logprobs_have_bytes_and_alternatives(server: EdgeServer) -> None:
    said = [*ids("é😀"), EOS]
    server.engine.play = speak(said)
    choice = message(server, logprobs=True, top_logprobs=2)
    assert choice["message"]["content"] == "é😀"
    content = choice["logprobs"]["content"]
    assert len(content) == len(said)
    assert bytes(byte for entry in content[:-1] for byte in entry["bytes"]).decode() == "é😀"
    for entry in content:
        assert entry["logprob"] == -0.5
        assert [set(top) for top in entry["top_logprobs"]] == [{"token", "logprob", "bytes"}] * 2
        best = entry["top_logprobs"][0]
        assert best == {key: entry[key] for key in ("token", "logprob", "bytes")}


def test_logprobs_without_alternatives_and_alternatives_without_logprobs(
    server: EdgeServer,
) -> None:
    choice = message(server, logprobs=True, max_tokens=2)
    assert [entry["top_logprobs"] for entry in choice["logprobs"]["content"]] == [[], []]
    choice = message(server, top_logprobs=5, max_tokens=2)
    assert choice["logprobs"] is None
    assert server.engine.requests[-1].sampling.top_n_tokens == 0
    choice = message(server, logprobs=True, top_logprobs=20, max_tokens=1)
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 20


def test_an_impossible_logprob_is_openais_number(server: EdgeServer) -> None:
    server.engine.play = speak(ids(STORY), logprob=float("-inf"))
    choice = message(server, logprobs=True, max_tokens=1)
    assert choice["logprobs"]["content"][0]["logprob"] == -9999.0


def test_line_separators_are_escaped(server: EdgeServer) -> None:
    server.engine.play = say("a\u2028b\x85c\u2029", eos=True)
    response = chat(server, model="m\u2028")
    assert response.json()["choices"][0]["message"]["content"] == "a\u2028b\x85c\u2029"
    assert not {"\u2028", "\x85", "\u2029"} & set(response.text)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 101}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": 1.5, "temperature": 0}, "top_p"),
        ({"typical_p": 1.5}, "typical_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 801}, "messages"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 4_000_000_000}, "n"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {str(TOKENIZER.vocab_size): 1}}, "logit_bias"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_values_out_of_their_limits(
    server: EdgeServer, fields: dict[str, Any], param: str, stream: bool
) -> None:
    before = server.value("tgi_request_failure", err="validation")
    refused = refusal(chat(server, stream=stream, **fields))
    assert refused["message"].startswith("Input validation error: ")
    assert refused["param"] == param and f"`{param}`" in refused["message"]
    assert refused["type"] == "invalid_request_error"
    assert refused["error_type"] == "validation"
    assert server.value("tgi_request_failure", err="validation") == before + 1


def test_a_chat_that_is_too_long_has_openais_code(server: EdgeServer) -> None:
    long = [{"role": "user", "content": "word " * 2_000}]
    for fields in ({}, {"max_tokens": 1}):
        refused = refusal(chat(server, messages=long, **fields))
        assert refused["code"] == "context_length_exceeded"
        assert refused["param"] == "messages"


def test_developer_is_the_system_and_calls_are_seen_as_text() -> None:
    loop = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template = _template(loop + "{{ tools or '' }}")
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    with EdgeServer(template=template, max_input_tokens=127) as server:
        messages = [
            {"role": "developer", "content": "x", "name": "n"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "r", "tool_call_id": "c"},
        ]
        message(server, messages=messages, max_tokens=1)
        prompt = TOKENIZER.decode(server.engine.requests[-1].token_ids)
    assert prompt.startswith("<system>x<assistant>[{") and prompt.endswith("]<tool>r")
    assert '"name":"f"' in prompt and 'a\\":1' in prompt


def test_no_template_and_a_template_that_refuses() -> None:
    refusing = _template("{{ raise_exception('Only users may begin') }}")
    for template, said in (
        (ChatTemplate(None), "Template error: template not found"),
        (refusing, "Only users may begin"),
    ):
        with EdgeServer(template=template) as server:
            for stream in (False, True):
                refused = refusal(chat(server, stream=stream))
                assert said in refused["message"]
                assert refused["error_type"] == "template_error"
            assert server.value("tgi_request_failure", err="template") == 2


def test_metrics_count_a_chat_once(server: EdgeServer) -> None:
    names = ("tgi_request_count", "tgi_request_success", "tgi_request_generated_tokens_sum")
    before = [server.value(name) for name in names]
    message(server, max_tokens=3)
    grown = [server.value(name) - old for name, old in zip(names, before, strict=True)]
    assert grown == [1, 1, 3]


def test_overload_and_permits() -> None:
    slow = say(STORY, gap_s=0.02)
    with EdgeServer(slow, max_concurrent_requests=2) as server:
        assert len(chat(server, n=2, max_tokens=2).json()["choices"]) == 2
        too_many = refusal(chat(server, n=3))
        assert too_many["param"] == "n"
        with server.stream(max_new_tokens=100) as stream:
            pieces = stream.iter_raw()
            next(pieces)
            response = chat(server, n=2)
            refused = refusal(response, 429)
            assert refused["type"] == "rate_limit_error"
            assert refused["error_type"] == "overloaded"
            assert response.headers["retry-after"] == "1"
        until(lambda: server.engine.running == 0)
        assert chat(server, n=2, max_tokens=2).status_code == 200


def test_a_client_that_leaves_ends_the_generation() -> None:
    with EdgeServer(say(STORY, gap_s=0.05), max_total_tokens=800) as server:
        chat(server, max_tokens=1)  # renders the first chat, which takes longest
        with pytest.raises(httpx.ReadTimeout):
            server.post(CHAT, {"messages": HI, "n": 2}, timeout=0.5)
        until(lambda: server.engine.running == 0)
        assert len(server.engine.aborted) == 2
        until(lambda: server.value("tgi_request_failure", err="dropped") == 1)
