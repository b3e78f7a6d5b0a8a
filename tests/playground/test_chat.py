"""The playground's chat in Chromium: turns, logprobs, stop, awkward text, the curl command."""

import json
import subprocess
from collections.abc import Callable

from support.awkward import AWKWARD
from support.chromium import Page
from support.edge_server import EdgeServer, say, until
from support.playground import answer, finished, generate, tokens_shown
from tiercel.bench.server import ServerProcess

OpenPage = Callable[..., Page]


def open_chat(open_page: OpenPage, url: str) -> Page:
    page = open_page(url)
    page.click("#modes label", 1)
    assert page.text("#send") == "Send"
    return page


def test_a_chat_of_two_turns(eyas_server: ServerProcess, open_page: OpenPage) -> None:
    page = open_chat(open_page, eyas_server.url)
    generate(page, "Who are you?", max_new_tokens=30, seed=5, system="You are a falcon.")
    assert finished(page) in ("length", "stop")
    first = answer(page)
    assert first
    assert page.run("document.getElementById('prompt').value") == ""
    page.hover(".t", 2)
    page.until("!document.getElementById('card').hidden")
    assert page.run("document.querySelectorAll('#card-rows li').length") in (5, 6)
    page.type("And then?")
    page.allow("clipboardReadWrite", "clipboardSanitizedWrite")
    page.run("document.getElementById('copy-curl').click()")
    page.until("document.getElementById('status').textContent.startsWith('Copied')")
    command = page.run("navigator.clipboard.readText()")
    page.press("Enter", "Control")
    finished(page)
    assert page.run("document.querySelectorAll('.turn').length") == 2
    done = subprocess.run(
        ["bash", "-c", f"{command} -s"], capture_output=True, text=True, timeout=30, check=True
    )
    *chunks, end = [part[6:] for part in done.stdout.split("\n\n") if part.startswith("data: ")]
    assert end == "[DONE]"
    deltas = [choice["delta"] for data in chunks for choice in json.loads(data)["choices"]]
    assert "".join(delta["content"] for delta in deltas) == answer(page)
    sent = json.loads(command.partition("--data-raw '")[2].rstrip("'").replace("'\\''", "'"))
    assert [each["role"] for each in sent["messages"]] == ["system", "user", "assistant", "user"]
    assert sent["messages"][2]["content"] == first


def test_stop_cancels_and_keeps_the_turn(edge: EdgeServer, open_page: OpenPage) -> None:
    edge.engine.play = say(" on and on", gap_s=0.02)
    page = open_chat(open_page, edge.url)
    before = edge.value("tiercel_requests_cancelled_total", stage="decode")
    generate(page, "Go on", max_new_tokens=900)
    page.until("document.querySelectorAll('.t').length > 3")
    page.press("Escape")
    assert finished(page) == "you"
    until(lambda: edge.engine.running == 0)
    assert edge.value("tiercel_requests_cancelled_total", stage="decode") == before + 1
    kept = answer(page)
    assert kept.startswith(" on and on")
    generate(page, "More", max_new_tokens=4)
    assert finished(page) == "length"
    assert page.run("document.querySelectorAll('.turn').length") == 2


def test_awkward_text_arrives_whole(edge: EdgeServer, open_page: OpenPage) -> None:
    for per_delta in (1, 3):
        edge.engine.play = say(AWKWARD, eos=True, per_delta=per_delta)
        page = open_chat(open_page, edge.url)
        generate(page, AWKWARD.replace("\0", ""), max_new_tokens=900)
        assert finished(page) == "stop"
        assert answer(page) == AWKWARD


def test_the_tokens_of_the_stop_text_can_be_looked_at(
    edge: EdgeServer, open_page: OpenPage
) -> None:
    edge.engine.play = say(" yes, it is.\nUser: no", eos=True)
    page = open_chat(open_page, edge.url)
    generate(page, "Is it?")
    assert finished(page) == "stop"
    assert answer(page) == " yes, it is."
    page.hover(".t", tokens_shown(page) - 1)
    page.until("!document.getElementById('card').hidden")
    assert page.text("#card-token") == ":"
    assert page.run("document.querySelector('#card .taken .alternative').textContent") == ":"


def test_a_refused_value_is_said(edge: EdgeServer, open_page: OpenPage) -> None:
    page = open_chat(open_page, edge.url)
    generate(page, "Hello", top_p=7)
    page.until("!document.getElementById('failure').hidden")
    assert "top_p" in page.text("#failure")
    assert "422" in page.text("#failure")
    assert tokens_shown(page) == 0
    assert page.run("document.getElementById('prompt').value") == "Hello"  # to try again
    page.problems.clear()  # the console tells of the 422


def test_clear_forgets_the_turns(edge: EdgeServer, open_page: OpenPage) -> None:
    page = open_chat(open_page, edge.url)
    generate(page, "Hello", max_new_tokens=5)
    finished(page)
    page.click("#clear")
    assert page.run("document.querySelectorAll('.turn').length") == 0
    assert page.run("document.getElementById('hint').checkVisibility()")
    asked = len(edge.engine.requests)
    generate(page, "Hello", max_new_tokens=5)
    finished(page)
    first, second = (each.token_ids for each in edge.engine.requests[asked - 1 :])
    assert first == second
