"""What a model, a server or an injected script may do to the page: nothing."""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from support.awkward import AWKWARD, Relay
from support.chromium import Page, ProtocolError
from support.edge_server import EdgeServer, ids, say
from support.playground import answer, fill, finished, generate, tokens_shown
from tiercel.api.auth import ApiKey, KeyRing
from tiercel.wire.messages import Token, TokenDelta
from tiercel.wire.request import GenerationRequest

OpenPage = Callable[..., Page]
HTML = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture
def relay(edge: EdgeServer) -> Iterator[Relay]:
    with Relay(edge.port) as running:
        yield running


def failure(page: Page) -> str:
    page.until("!document.getElementById('failure').hidden")
    return page.text("#failure")


@pytest.mark.parametrize("text", [AWKWARD, HTML], ids=["awkward", "html"])
def test_text_arrives_whole_and_stays_text(
    edge: EdgeServer, open_page: OpenPage, text: str
) -> None:
    edge.engine.play = say(text, eos=True)
    page = open_page(edge.url)
    generate(page, HTML, max_new_tokens=1_000, alternatives=0)
    assert finished(page) == "eos_token"
    assert answer(page) == text
    assert page.text(".given") == HTML
    assert page.run("document.querySelectorAll('img, #output script').length") == 0
    assert page.run("document.title") == "Playground · Tiercel"
    assert page.run("document.querySelector('.t.special').textContent") == "<|endoftext|>"


def test_alternatives_are_text_too(edge: EdgeServer, open_page: OpenPage) -> None:
    (less,) = ids("<")

    async def play(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        token = Token(less, -1.0, [less, 100], [-1.0, -2.0])
        yield TokenDelta(request.id, [token], "length", queue_s=0.0)

    edge.engine.play = play
    page = open_page(edge.url)
    generate(page, "Less", alternatives=2)
    finished(page)
    page.hover(".t")
    page.until("!document.getElementById('card').hidden")
    assert page.run("document.querySelector('.alternative').textContent") == "<"


def test_parts_of_a_character_are_shown_when_it_is_whole(
    edge: EdgeServer, open_page: OpenPage
) -> None:
    edge.engine.play = say("😀", eos=True)
    page = open_page(edge.url)
    generate(page, "Smile")
    finished(page)
    texts = page.run("[...document.querySelectorAll('.t')].map((e) => e.textContent)")
    assert len(texts) == len(ids("😀")) + 1
    assert [text for text in texts if text] == ["😀", "<|endoftext|>"]
    page.hover(".t", texts.index(""))
    page.until("!document.getElementById('card').hidden")
    assert page.text("#card-token") == "(part of a character)"


def test_a_refused_value_is_said_in_the_servers_words(
    edge: EdgeServer, open_page: OpenPage
) -> None:
    page = open_page(edge.url)
    generate(page, "A story", top_p=1.5)
    text = failure(page)
    assert text == ("Input validation error: `top_p` must be greater than 0.0 and less than 1.0")
    assert page.run("document.getElementById('failure').role") == "alert"
    assert finished(page) == "error"
    generate(page, "A story", top_p=0.5)
    finished(page)
    assert page.run("document.getElementById('failure').hidden")


def test_a_full_server_is_said(open_page: OpenPage) -> None:
    with EdgeServer(say(" wait", gap_s=0.05), max_concurrent_requests=1) as server:
        page = open_page(server.url)
        with server.stream(max_new_tokens=100):
            generate(page, "A story")
            assert "overloaded" in failure(page)


def test_a_lost_connection_is_said_and_the_text_kept(
    edge: EdgeServer, relay: Relay, open_page: OpenPage
) -> None:
    edge.engine.play = say(" on and on", gap_s=0.02)
    page = open_page(relay.url)
    generate(page, "A story", max_new_tokens=1_000)
    page.until("document.querySelectorAll('.t').length > 3")
    relay.cut()
    text = failure(page)
    assert text.startswith("The connection to the server was lost. The ")
    assert text == (
        f"The connection to the server was lost. The {tokens_shown(page)} tokens that had "
        "arrived are kept."
    )
    assert finished(page) == "error"
    page.problems.clear()  # Chromium tells the console, too


def test_a_key_is_asked_for_sent_and_kept_for_the_tab(open_page: OpenPage) -> None:
    ring = KeyRing([ApiKey("test", hashlib.sha256(b"secret").digest())])
    with EdgeServer(keys=ring) as server:
        page = open_page(server.url)
        generate(page, "A story")
        assert failure(page).endswith("Enter a valid API key in the settings. (401)")
        page.run("key.value = 'secret'; key.dispatchEvent(new Event('change'))")
        generate(page, "A story", max_new_tokens=10)
        assert finished(page) == "length"
        assert page.run("JSON.stringify(localStorage)") == "{}"
        assert page.run("Object.values(sessionStorage)") == ["secret"]
        assert page.run("document.cookie") == ""
        page.problems.clear()  # the 401


def test_what_the_browser_can_tell_is_said_before_sending(
    edge: EdgeServer, open_page: OpenPage
) -> None:
    page = open_page(edge.url, width=390, height=844)
    asked = len(edge.engine.requests)
    fill(page, seed="not a number")
    page.tap("#prompt")
    page.type("A story")
    page.tap("#send")
    assert page.run("document.activeElement.name") == "seed"  # in the settings, now open
    assert page.run("document.getElementById('settings').checkVisibility()")
    assert len(edge.engine.requests) == asked


def test_injected_scripts_do_not_run(edge: EdgeServer, open_page: OpenPage) -> None:
    page = open_page(edge.url)
    with pytest.raises(ProtocolError, match="TrustedHTML"):
        page.run("document.body.innerHTML = '<b>x</b>'")
    page.run(
        "window.violated = []; document.addEventListener('securitypolicyviolation',"
        "(event) => violated.push(event.effectiveDirective))"
    )
    page.run(
        "(() => { const e = document.createElement('style'); e.append('*{color:red}');"
        "document.head.append(e); })()"
    )
    page.run(
        "(() => { const e = document.createElement('img'); e.src = '/x.png';"
        "document.body.append(e); })()"
    )
    page.run("fetch('http://127.0.0.1:1/').catch(() => 0)")
    page.run(
        "(() => { const e = document.createElement('base'); e.href = 'http://127.0.0.1:1/';"
        "document.head.append(e); })()"
    )
    page.until("violated.length >= 4")
    assert set(page.run("violated")) == {"style-src-elem", "img-src", "connect-src", "base-uri"}
    page.problems.clear()
    page.requests.clear()
