"""`/chat_tokenize` over a scripted engine: rendered text, its tokens, and refusals."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.edge_server import TOKENIZER, EdgeServer
from tiercel.text.chat import ChatTemplate

PATH = "/chat_tokenize"


@pytest.fixture(scope="module")
def server() -> Iterator[EdgeServer]:
    with EdgeServer() as server:
        yield server


def ask(server: EdgeServer, *messages: dict[str, Any], **more: Any) -> httpx.Response:
    return server.post(PATH, {"messages": list(messages), **more})


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text = response.json()["templated_text"]
    assert isinstance(text, str)
    return text


def test_tokens_of_exactly_the_text(server: EdgeServer) -> None:
    response = ask(server, {"role": "user", "content": "Grüße 🦅\u2028<|endoftext|>"})
    text = text_of(response)
    assert text == "User: Grüße 🦅\u2028<|endoftext|>\n\nAssistant:"
    tokens = response.json()["tokenize_response"]
    assert [token["id"] for token in tokens] == TOKENIZER.encode(text, add_special_tokens=False)
    for token in tokens:
        assert text.encode()[token["start"] : token["stop"]].decode() == token["text"]
    assert "\u2028" not in response.text  # httpx and others split lines there


def test_parts_are_the_concatenated_text(server: EdgeServer) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    whole = ask(server, {"role": "user", "content": "one two"})
    assert ask(server, {"role": "user", "content": parts}).json() == whole.json()


def test_a_last_message_of_the_assistant_is_continued(server: EdgeServer) -> None:
    messages = ({"role": "user", "content": "Go"}, {"role": "assistant", "content": "A ship "})
    assert text_of(ask(server, *messages)) == "User: Go\n\nAssistant: A ship"


def test_tools_stand_in_the_last_message(server: EdgeServer) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    message = {"role": "user", "content": "Go"}
    assert '"name":"f"' in text_of(ask(server, message, tools=tools))
    assert "name" not in text_of(ask(server, message, tools=tools, tool_choice="none"))


def test_what_the_template_raises(server: EdgeServer) -> None:
    response = ask(server, {"role": "banned", "content": "x"})
    assert response.status_code == 422
    assert response.json()["error_type"] == "template_error"
    said = "the roles of this model are system, user and assistant, not banned"
    assert f"syntax error: {said}" in response.json()["error"]


def test_without_a_template() -> None:
    with EdgeServer(template=ChatTemplate(None)) as server:
        response = ask(server, {"role": "user", "content": "x"})
    assert response.status_code == 422
    assert response.json() == {
        "error": "Template error: template not found",
        "error_type": "template_error",
    }


def test_a_server_that_drains_refuses(server: EdgeServer) -> None:
    server.state.draining = True
    try:
        assert ask(server, {"role": "user", "content": "x"}).status_code == 503
    finally:
        server.state.draining = False
