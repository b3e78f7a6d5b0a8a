"""The playground in Chromium against a real server: stream, stop, look at tokens, copy as curl."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from support.chromium import Page
from support.edge_server import until
from support.playground import answer, finished, generate, tokens_shown
from tiercel.bench.server import ServerProcess

OpenPage = Callable[..., Page]
PROMPT = "Fellow citizens of the Senate:"
AWKWARD_PROMPT = 'It\'s "quoted" $HOME `id` \\n !! 😀 <b>bold</b>\nsecond line'


CANCELLED = 'tiercel_requests_cancelled_total{stage="decode"}'


def metric(server: ServerProcess, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.get("/metrics")[1], re.MULTILINE)
    assert found, name
    return float(found[1])


def test_tokens_appear_while_later_ones_are_still_computed(
    eyas_server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(eyas_server.url)
    generate(page, PROMPT, max_new_tokens=200, seed=3)
    page.until("document.querySelector('.t')")
    early = tokens_shown(page)
    assert metric(eyas_server, "tgi_batch_current_size") == 1
    assert 0 < early < 200
    assert page.text("#reason") == "–"
    assert finished(page) == "length"
    assert tokens_shown(page) == 200
    assert page.text("#count") == "200"
    assert re.fullmatch(r"\d+ ms", page.text("#first-token"))
    assert float(page.text("#speed")) > 0
    assert page.text("#used-seed") == "3"
    assert page.text("#status") == "Finished: 200 tokens."


def test_the_page_shows_what_the_api_answers(
    eyas_server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(eyas_server.url)
    generate(page, PROMPT, max_new_tokens=60, seed=18446744073709551615, top_p=0.9)
    finished(page)
    parameters = {
        "max_new_tokens": 60,
        "seed": 18446744073709551615,
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.9,
    }
    body = json.dumps({"inputs": PROMPT, "parameters": parameters}).encode()
    request = urllib.request.Request(
        f"{eyas_server.url}/generate", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        assert answer(page) == json.load(response)["generated_text"]
    assert page.text("#used-seed") == "18446744073709551615"
    assert page.text(".given") == PROMPT


def test_stop_cancels_on_the_server(eyas_server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(eyas_server.url)
    before = metric(eyas_server, CANCELLED)
    generate(page, PROMPT, max_new_tokens=900, seed=3)  # another seed may end before the button
    page.until("document.querySelectorAll('.t').length > 5")
    page.click("#stop-button")
    assert finished(page) == "you"
    until(lambda: metric(eyas_server, CANCELLED) == before + 1)
    until(lambda: metric(eyas_server, "tgi_batch_current_size") == 0)
    shown = tokens_shown(page)
    assert 5 < shown < 900
    assert page.text("#status") == f"Stopped after {shown} tokens."
    assert page.run("document.getElementById('failure').hidden")
    generate(page, "Once more", max_new_tokens=5)  # and the page goes on
    assert finished(page) == "length"
    assert tokens_shown(page) == 5


def test_a_token_shows_what_else_it_could_have_been(
    eyas_server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(eyas_server.url)
    generate(page, PROMPT, max_new_tokens=20, seed=1)
    finished(page)
    assert page.run("document.getElementById('card').hidden")
    page.hover(".t", 7)
    page.until("!document.getElementById('card').hidden")
    assert page.run("document.querySelectorAll('#card-rows li').length") in (5, 6)
    assert page.run("document.querySelectorAll('#card-rows .taken').length") == 1
    shown = page.run("document.querySelectorAll('.t')[7].textContent").replace(" ", "␣")
    assert page.text("#card-token") == shown.replace("\n", "↵")
    assert re.match(
        r"(< 0\.1|\d+(\.\d)?)% · logprob -\d+\.\d{3} · id \d+$", page.text("#card-facts")
    )
    shares = page.run(
        "[...document.querySelectorAll('.value')].map((e) => parseFloat(e.textContent))"
    )
    assert [each for each in shares if each is not None] == sorted(
        (each for each in shares if each is not None), reverse=True
    )
    page.hover("#prompt")
    page.until("document.getElementById('card').hidden")


def test_colours_follow_the_probabilities(eyas_server: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(eyas_server.url)
    generate(page, PROMPT, max_new_tokens=120, seed=1)
    finished(page)
    levels = page.run(
        "[...document.querySelectorAll('.t')].map((e) => e.className.match(/p(\\d)/)[1])"
    )
    assert len(set(levels)) >= 4
    coloured = "getComputedStyle(document.querySelector('.t.p4, .t.p3')).backgroundColor"
    assert page.run(coloured) != "rgba(0, 0, 0, 0)"
    page.run("document.getElementById('colours').click()")
    assert page.run(coloured) == "rgba(0, 0, 0, 0)"


@pytest.mark.parametrize("prompt", [PROMPT, AWKWARD_PROMPT])
def test_the_copied_curl_command_is_the_request(
    eyas_server: ServerProcess, open_page: OpenPage, tmp_path: Path, prompt: str
) -> None:
    page = open_page(eyas_server.url)
    generate(page, prompt, max_new_tokens=24, seed=7, stop="\\nThe end\nNever 'said'")
    finished(page)
    page.allow("clipboardReadWrite", "clipboardSanitizedWrite")
    page.click("#copy-curl")
    page.until("document.getElementById('status').textContent.startsWith('Copied')")
    command = page.run("navigator.clipboard.readText()")
    target = tmp_path / "events"
    done = subprocess.run(
        ["bash", "-c", f"{command} -s -o '{target}' -w '%{{http_code}}'"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "200"
    events = [json.loads(part[6:]) for part in target.read_text().split("\n\n") if part]
    assert events[-1]["generated_text"] == answer(page)


def test_without_a_clipboard_the_command_is_shown(
    eyas_server: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(eyas_server.url)
    page.run("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.click("#prompt")
    page.type("Call me")
    page.click("#copy-curl")
    page.until("document.getElementById('command').open")
    command = page.run("document.getElementById('command-text').value")
    assert command.startswith(f"curl -N '{eyas_server.url}/generate_stream'")
    assert page.run("String(getSelection())") == command
    page.press("Escape")
    page.until("!document.getElementById('command').open")
