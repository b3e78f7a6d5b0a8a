"""Rendering in the sandbox: as transformers does it, and with an answer to hostile templates."""

import asyncio
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from support.chat_templates import CHATML_GENERATION, HEADERS_AND_TOOLS, HOSTILE, LIKE_PUBLISHED
from tiercel import eyas
from tiercel.errors import RequestError, TemplateError, Unhealthy, ValidationError
from tiercel.sandbox.pool import SandboxPool
from tiercel.text.chat import JOB, NOT_FOUND, RENDER_LIMITS, ChatTemplate
from tiercel.text.chat_source import TemplateSource

TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
Messages = list[dict[str, Any]]


def say(*turns: str) -> Messages:
    """Messages from `role: content`."""
    pairs = (turn.split(": ", 1) for turn in turns)
    return [{"role": role, "content": content} for role, content in pairs]


CHATS: dict[str, Messages] = {
    "one": say("user: Hello"),
    "system": say("system:  Be kind. ", "user: Hi\r\nthere"),
    "turns": say("user: 1", "assistant: 2 ", "user: 3\n\n4"),
    "unicode": say(
        "user: Grüße 🦅 中文 \u2028 <b>&amp;</b>", "assistant: é", "user: {{ x }}{% y %}"
    ),
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "wetter",
            "description": "Says <b>what</b> it's like in Köln & elsewhere",
            "parameters": {"type": "object", "properties": {"ort": {"type": "string"}}},
        },
    }
]
CALLS = [{"id": "0", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, "ä"]}'}}]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(TemplateSource(source, "a test", TOKENS))


def render_all(
    made: ChatTemplate, chats: Sequence[Messages], tools: list[dict[str, Any]] | None = None
) -> list[str | RequestError]:
    """The prompts, or the errors, of chats one after the other."""

    async def run() -> list[str | RequestError]:
        pool = SandboxPool()
        made.add_to(pool)
        answers: list[str | RequestError] = []
        for messages in chats:
            try:
                answers.append(await made.render(pool, messages, tools))
            except RequestError as error:
                answers.append(error)
        await pool.close()
        return answers

    return asyncio.run(run())


def render(source: str, messages: Messages, tools: list[dict[str, Any]] | None = None) -> str:
    (answer,) = render_all(template(source), [messages], tools)
    if isinstance(answer, RequestError):
        raise answer
    return answer


@cache
def reference() -> Any:
    return AutoTokenizer.from_pretrained(eyas.path())


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("name", LIKE_PUBLISHED)
def test_renders_as_transformers_does(name: str, tools: list[dict[str, Any]] | None) -> None:
    source = LIKE_PUBLISHED[name]
    expected = [
        reference().apply_chat_template(
            messages,
            tools=tools,
            chat_template=source,
            add_generation_prompt=True,
            tokenize=False,
        )
        for messages in CHATS.values()
    ]
    assert render_all(template(source), list(CHATS.values()), tools) == expected


def test_tool_calls_are_given_to_templates_that_read_them() -> None:
    messages: Messages = [
        *say("user: How is it?"),
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        *say("tool: 21"),
    ]
    prompt = render(HEADERS_AND_TOOLS, messages, TOOLS)
    assert '{"n": 1, "name": "f"}1{"a": [1, "ä"]}<|end|>' in prompt
    (text,) = render_all(template(LIKE_PUBLISHED["falcon3"]), [messages])
    assert isinstance(text, str)
    assert '<|assistant|>\n[{"id":"0","type":"function","function":{"name":"f",' in text


def test_parts_are_concatenated() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]
    messages: Messages = [{"role": "user", "content": parts}]
    assert render("{{ messages[0].content }}", messages) == "one two"


def test_missing_tokens_are_undefined() -> None:
    made = ChatTemplate(TemplateSource("<{{ bos_token }}>{{ bos_token is defined }}", "a test"))
    assert render_all(made, [say("user: x")]) == ["<>False"]


@pytest.mark.parametrize("content", ["Once upon a ", "A", "e", "<|im_end|>", "  spaced  out \n"])
@pytest.mark.parametrize("name", LIKE_PUBLISHED)
def test_a_last_message_of_the_assistant_is_continued(name: str, content: str) -> None:
    """Also where its words occur again behind it, in the end of the turn or the next header."""
    messages = [*say("user: Tell me"), {"role": "assistant", "content": content}]
    prompt = render(LIKE_PUBLISHED[name], messages)
    assert prompt.endswith(content.strip() if name != "falcon3" else content.rstrip())
    complete = reference().apply_chat_template(
        messages, chat_template=LIKE_PUBLISHED[name], add_generation_prompt=True, tokenize=False
    )
    assert complete.startswith(prompt)
    assert len(prompt) >= complete.index("Tell me") + len("Tell me") + len(content.strip())


def test_a_template_that_drops_the_end_is_searched_for_the_content() -> None:
    source = "{% for m in messages %}[{{ m.content[:4] }}]{% endfor %}>"
    assert render(source, say("user: ab", "assistant: ab")) == "[ab][ab"
    source = "{% for m in messages * 2 %}[{{ m.content }}]{% endfor %}"
    assert render(source, say("user: a", "assistant: b")) == "[a][b][a][b"
    assert render("{{ messages[-1].content | length }} ", say("user: a", "assistant: b")) == "1"


def test_raise_exception_names_the_line() -> None:
    source = "{{ bos_token }}\n{% if true %}\n\n{{ raise_exception('no & <no>') }}{% endif %}"
    with pytest.raises(TemplateError) as raised:
        render(source, say("user: x"))
    assert str(raised.value) == "Template error: syntax error: no & <no> (in chat_template:4)"


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_templates_are_answered(source: str) -> None:
    """And the next chat as well: its process is a new one where it has to be."""
    made = template(source)
    answers = render_all(made, [say("user: x"), say("user: y")])
    for answer in answers:
        assert isinstance(answer, TemplateError), answer
        assert HOSTILE[source] in str(answer)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ x", "syntax error: unexpected end of template"),
        ("a\n{% endfor %}", "(in chat_template:2)"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    ],
)
def test_syntax_errors_are_found_when_the_model_is_loaded(
    source: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = template(source)
    assert not made.available
    assert problem in caplog.text
    assert "a test" in caplog.text
    (answer,) = render_all(made, [say("user: x")])
    assert isinstance(answer, TemplateError)
    assert problem in str(answer)


def test_what_only_compiling_finds_is_logged_by_the_check(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check(source: str) -> None:
        made, pool = template(source), SandboxPool()
        made.add_to(pool)
        await made.check(pool)
        await pool.close()

    asyncio.run(check(CHATML_GENERATION))
    assert not caplog.text
    asyncio.run(check("{{ messages | nonsense }}"))
    assert "a test: syntax error: No filter named 'nonsense'. (in chat_template:1)" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["half \ud800", [{"type": "text", "text": "\udfff"}]],
)
def test_text_that_is_none_is_a_value_error(content: object) -> None:
    with pytest.raises(ValidationError, match="surrogate"):
        render("{{ messages }}", [{"role": "user", "content": content}])


def test_numbers_and_depth_that_cannot_cross(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValidationError, match="64 bits"):
        render("{{ tools }}", say("user: x"), [{"n": 2**70}])
    with pytest.raises(ValidationError, match="deeply"):
        render("{{ tools }}", say("user: x"), [{"n": deep}])


def test_without_a_process_it_is_not_the_callers_fault() -> None:
    """503 and `retry-after`: neither the messages nor the template are wrong."""

    async def run() -> None:
        pool = SandboxPool()
        pool.add(JOB, "no context", RENDER_LIMITS)
        try:
            await template("{{ messages }}").render(pool, CHATS["one"], None)
        finally:
            await pool.close()

    with pytest.raises(Unhealthy, match="chats cannot be rendered"):
        asyncio.run(run())


def test_without_a_template_every_chat_is_refused() -> None:
    (answer,) = render_all(ChatTemplate(None), [say("user: x")])
    assert str(answer) == f"Template error: {NOT_FOUND}"


@pytest.mark.parametrize(
    ("source", "uses_tools", "stops"),
    [
        (LIKE_PUBLISHED["falcon-instruct"], False, False),
        ("{{ 'User: ' + messages[0].content }}", False, True),
        ("User: {{ messages[0].content }}", False, True),
        ("{# User: #}{% set tools = 1 %}", False, False),
        ("{% if tools is not none %}{% endif %}", True, False),
        (HEADERS_AND_TOOLS, True, False),
    ],
)
def test_what_a_template_tells_of_itself(source: str, uses_tools: bool, stops: bool) -> None:
    made = template(source)
    assert made.uses_tools is uses_tools
    assert ("\nUser:" in made.default_stops) is stops
