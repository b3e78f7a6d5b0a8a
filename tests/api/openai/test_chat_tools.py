"""Tool calls end to end over a scripted model: calls, texts instead of them, streams, cut-offs."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.chats import (
    ARGUMENTS,
    CALL,
    HI,
    NO_CALL,
    TOOLS,
    chat,
    chunks,
    in_turn,
    message,
    refusal,
)
from support.edge_server import EOS, STORY, TOKENIZER, EdgeServer, ids, say
from support.scripted_engine import speak
from tiercel.text.chat import ChatTemplate
from tiercel.text.chat_source import TemplateSource
from tiercel.wire.messages import TokenDelta
from tiercel.wire.request import GenerationRequest


@pytest.fixture
def calling(server: EdgeServer) -> EdgeServer:
    server.engine.play = say(CALL, eos=True)
    return server


@pytest.mark.parametrize("choice", ["auto", None, "required", "get_weather"])
def test_a_call_has_the_contracts_shape(calling: EdgeServer, choice: str | None) -> None:
    answer = message(calling, tools=TOOLS, tool_choice=choice)
    assert answer["finish_reason"] == "tool_calls"
    assert answer["logprobs"] is None
    assert set(answer["message"]) == {"role", "tool_calls"}
    (call,) = answer["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["type"] == "function"
    function = {"description": None, "name": "get_weather", "arguments": ARGUMENTS}
    assert call["function"] == function
    grammar = calling.engine.requests[-1].grammar
    assert grammar is not None and '"get_weather"' in grammar.text


def test_ids_of_calls_are_unique(calling: EdgeServer) -> None:
    choices = chat(calling, tools=TOOLS, n=2).json()["choices"]
    ids = {choice["message"]["tool_calls"][0]["id"] for choice in choices}
    assert len(ids) == 2


def test_usage_and_metrics_are_those_of_the_call(calling: EdgeServer) -> None:
    names = ("tgi_request_count", "tgi_request_success", "tgi_request_generated_tokens_sum")
    before = [calling.value(name) for name in names]
    response = chat(calling, tools=TOOLS)
    usage = response.json()["usage"]
    said = len(ids(CALL)) + 1
    assert usage["completion_tokens"] == said
    assert usage["prompt_tokens"] == len(calling.engine.requests[-1].token_ids)
    assert response.headers["x-prompt-tokens"] == str(usage["prompt_tokens"])
    assert response.headers["x-generated-tokens"] == str(said)
    grown = [calling.value(name) - old for name, old in zip(names, before, strict=True)]
    assert grown == [1, 1, said]


@pytest.mark.parametrize("per_delta", [1, 3, 50])
def test_no_call_is_a_text_with_its_own_figures(server: EdgeServer, per_delta: int) -> None:
    """TGI reported tokens, reason and logprobs of the attempt to call (contract 1.8)."""
    before = len(server.engine.requests)
    success = server.value("tgi_request_success")
    tried = speak([*ids(NO_CALL), EOS], per_delta=per_delta)
    server.engine.play = in_turn([tried, say(STORY)])
    response = chat(server, tools=TOOLS, logprobs=True, max_tokens=20)
    body = response.json()
    (choice,) = body["choices"]
    said = (ids(STORY) * 3)[:20]
    assert choice["message"] == {"role": "assistant", "content": TOKENIZER.decode(said)}
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["content"]) == 20
    attempt, text = server.engine.requests[before:]
    assert attempt.grammar is not None and text.grammar is None
    assert TOKENIZER.decode(text.token_ids) == "User: Hi\n\nAssistant:"
    assert body["usage"]["prompt_tokens"] == len(text.token_ids)
    assert body["usage"]["completion_tokens"] == 20
    assert response.headers["x-prompt-tokens"] == str(len(text.token_ids))
    assert response.headers["x-generated-tokens"] == "20"
    assert server.value("tgi_request_success") == success + 1


def test_the_attempt_ends_as_soon_as_it_is_known(server: EdgeServer) -> None:
    server.engine.play = in_turn([say(NO_CALL + " " * 300, gap_s=0.001), say(STORY, eos=True)])
    message(server, tools=TOOLS)
    attempt = server.engine.requests[-2].id
    assert attempt in server.engine.aborted


def test_none_is_plain_text(server: EdgeServer) -> None:
    answer = message(server, tools=TOOLS, tool_choice="none")
    assert answer["message"] == {"role": "assistant", "content": STORY}
    assert server.engine.requests[-1].grammar is None
    assert "get_weather" not in TOKENIZER.decode(server.engine.requests[-1].token_ids)


def test_stop_strings_do_not_cut_a_call(calling: EdgeServer) -> None:
    answer = message(calling, tools=TOOLS, stop=[":", '"'])
    assert answer["message"]["tool_calls"][0]["function"]["arguments"] == ARGUMENTS


def test_a_template_without_tools_gets_them_in_the_last_message(calling: EdgeServer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    for prompt in (None, "Use these:"):
        message(calling, messages=messages, tools=TOOLS, tool_prompt=prompt)
        text = TOKENIZER.decode(calling.engine.requests[-1].token_ids)
        assert text.index("User: Hi\n---\n") < text.index('"get_weather"')
        assert ("Use these:" in text) == (prompt is not None)
        assert text.endswith("Assistant:")


def test_a_template_with_tools_gets_them_itself() -> None:
    source = "{% for t in tools %}{{ t.function.name }};{% endfor %}{{ messages[0].content }}"
    template = ChatTemplate(TemplateSource(source, "a test"))
    with EdgeServer(say(CALL, eos=True), template=template) as server:
        message(server, tools=TOOLS, tool_choice="required", tool_prompt="unused")
        text = TOKENIZER.decode(server.engine.requests[-1].token_ids)
        assert text == "get_weather;get_time;Hi"
        message(server, tools=TOOLS, tool_choice="get_weather")
        assert TOKENIZER.decode(server.engine.requests[-1].token_ids) == "get_weather;Hi"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": [], "response_format": {"type": "json_object"}}, "mutually exclusive"),
        ({"tools": TOOLS, "tool_choice": "nope"}, "nope"),
        ({"tool_choice": "required"}, "required"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_contradictions(
    server: EdgeServer, fields: dict[str, Any], said: str, stream: bool
) -> None:
    refused = refusal(chat(server, stream=stream, **fields))
    assert refused["error_type"] == refused["code"] == "tool_error"
    assert refused["message"].startswith("Tool error: ") and said in refused["message"]


def test_a_call_cut_by_the_limit(calling: EdgeServer) -> None:
    refused = refusal(chat(calling, tools=TOOLS, max_tokens=20))
    assert refused["error_type"] == "tool_error"
    assert "`max_tokens`" in refused["message"] and CALL[:20] in refused["message"]


def test_a_stream_without_even_a_name_has_a_status(calling: EdgeServer) -> None:
    response = chat(calling, stream=True, tools=TOOLS, tool_choice="required", max_tokens=2)
    assert refusal(response)["code"] == "tool_error"
    chunks(calling, tools=TOOLS, max_tokens=2)  # a call that need not be one is a text instead
    assert calling.engine.requests[-1].grammar is None


def _call(documents: list[dict[str, Any]], index: int = 0) -> tuple[list[str], str, str]:
    """(names, arguments, finish reason) of a streamed call, after checking its chunks."""
    names, arguments, reasons, call_ids = [], "", [], []
    for document in documents:
        for choice in document["choices"]:
            if choice["index"] != index:
                continue
            assert choice["delta"]["role"] == "assistant"
            assert set(choice["delta"]) == {"role", "tool_calls"}
            (call,) = choice["delta"]["tool_calls"]
            assert call["index"] == 0
            call_ids += [call["id"]] if "id" in call else []
            names += [call["function"]["name"]] if call["function"]["name"] else []
            arguments += call["function"]["arguments"]
            reasons.append(choice["finish_reason"])
    assert len(call_ids) == 1
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    return names, arguments, reasons[-1]


@pytest.mark.parametrize("per_delta", [1, 4, 100])
def test_a_streamed_call(server: EdgeServer, per_delta: int) -> None:
    server.engine.play = speak([*ids(CALL), EOS], per_delta=per_delta)
    documents = chunks(server, tools=TOOLS, stream_options={"include_usage": True})
    *before, last = documents
    names, arguments, reason = _call(before)
    assert (names, arguments, reason) == (["get_weather"], ARGUMENTS, "tool_calls")
    assert json.loads(arguments)["city"] == 'a "{b}" c'
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == len(ids(CALL)) + 1


def test_a_streamed_call_cut_by_the_limit(calling: EdgeServer) -> None:
    documents = chunks(calling, tools=TOOLS, max_tokens=20)
    names, arguments, reason = _call(documents)
    assert (names, reason) == (["get_weather"], "length")
    assert ARGUMENTS.startswith(arguments) and arguments != ARGUMENTS


def test_a_streamed_text_in_place_of_a_call(server: EdgeServer) -> None:
    server.engine.play = in_turn([say(NO_CALL, eos=True), say(STORY, eos=True)])
    documents = chunks(server, tools=TOOLS, stream_options={"include_usage": True})
    *before, last = documents
    text = "".join(document["choices"][0]["delta"]["content"] for document in before)
    assert text == STORY
    assert [d["choices"][0]["finish_reason"] for d in before][-2:] == [None, "stop"]
    assert last["usage"]["completion_tokens"] == len(ids(STORY)) + 1


def test_choices_decide_for_themselves(server: EdgeServer) -> None:
    """The first one calls, the second one does not."""

    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        said = {1: CALL, 2: NO_CALL}[request.sampling.seed] if request.grammar else STORY
        async for delta in say(said, eos=True)(request):
            yield delta

    server.engine.play = play
    first, second = chat(server, tools=TOOLS, n=2, seed=1).json()["choices"]
    assert first["message"]["tool_calls"][0]["function"]["arguments"] == ARGUMENTS
    assert first["finish_reason"] == "tool_calls"
    assert second["message"]["content"] == STORY
    assert second["finish_reason"] == "stop"
    documents = chunks(server, tools=TOOLS, n=2, seed=1)
    assert _call(documents)[1:] == (ARGUMENTS, "tool_calls")
    text = [d["choices"][0]["delta"]["content"] for d in documents if d["choices"][0]["index"] == 1]
    assert "".join(text) == STORY


@pytest.mark.parametrize(
    ("response_format", "kind", "text"),
    [
        ({"type": "json_object"}, "json_schema", '{"type":"object"}'),
        ({"type": "json", "value": {"properties": {}}}, "json_schema", '{"properties":{}}'),
        ({"type": "json_object", "value": '{"properties":{}}'}, "json_schema", '{"properties":{}}'),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}},
            "json_schema",
            '{"type":"array"}',
        ),
        ({"type": "json_schema", "value": {"schema": {"a": 1}}}, "json_schema", '{"a":1}'),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "json_schema", '{"type":"object"}'),
        ({"type": "regex", "value": "[ab]{3}"}, "regex", "[ab]{3}"),
    ],
)
def test_a_format_is_a_grammar(
    server: EdgeServer, response_format: dict[str, Any], kind: str, text: str
) -> None:
    server.engine.play = say('{"a":"\nUser:"}', eos=True)
    answer = message(server, response_format=response_format)
    grammar = server.engine.requests[-1].grammar
    assert grammar is not None
    assert (grammar.kind, grammar.text) == (kind, text)
    assert answer["message"]["content"] == '{"a":"\nUser:"}'  # the chat's stops are for free text


def test_text_is_no_format(server: EdgeServer) -> None:
    message(server, response_format={"type": "text"})
    assert server.engine.requests[-1].grammar is None


def test_formats_that_are_refused(server: EdgeServer) -> None:
    for response_format in (
        {"type": "json_object", "value": {"type": "string"}},
        {"type": "json_object", "value": "{"},
    ):
        refused = refusal(chat(server, response_format=response_format))
        assert refused["error_type"] == "validation"
        assert refused["param"] == "response_format"


def test_a_schema_of_a_tool_that_is_wrong_is_a_matter_of_tools(server: EdgeServer) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "no"}}}}
    refused = refusal(chat(server, tools=[{"type": "function", "function": function}]))
    assert refused["error_type"] == "tool_error"
    assert refused["param"] == "tools"
    assert "properties.a.type" in refused["message"]
    assert "response_format" not in refused["message"]


def test_results_of_tools_reach_a_template_that_knows_no_tools(server: EdgeServer) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "ten past four"},
    ]
    message(server, messages=messages)
    text = TOKENIZER.decode(server.engine.requests[-1].token_ids)
    assert '"name":"get_time"' in text
    assert text.endswith("User: ten past four\n\nAssistant:")
