"""The playground by keyboard alone, on a phone, for screen readers, in both themes."""

from collections.abc import Callable

import pytest

from support.chromium import Page
from support.edge_server import EdgeServer, say
from support.playground import (
    finished,
    generate,
    low_contrasts,
    overflow_px,
    small_targets,
    tokens_shown,
    unnamed_controls,
)

OpenPage = Callable[..., Page]
FOCUS = "document.activeElement.id || document.activeElement.className"


def tab_to(page: Page, name: str, *modifiers: str) -> None:
    """Press Tab until an element with that id or class has the focus."""
    for _ in range(40):
        page.press("Tab", *modifiers)
        if page.run(FOCUS) == name:
            return
    raise AssertionError(f"Tab never reaches {name}")


def test_everything_by_keyboard(edge: EdgeServer, open_page: OpenPage) -> None:
    edge.engine.play = say(" one two three four five six seven", gap_s=0.02)
    page = open_page(edge.url)
    assert page.run(FOCUS) == "prompt"
    page.type("Count")
    tab_to(page, "send")
    page.press("Enter")
    page.until("document.querySelectorAll('.t').length > 3")
    assert page.run(FOCUS) == "stop-button"  # the focus is not lost with the button
    page.press("Escape")
    assert finished(page) == "you"
    assert page.run(FOCUS) == "send"
    edge.engine.play = say(" one two three four five six seven", eos=True)
    page.press("Enter", "Control")
    assert finished(page) == "eos_token"
    tab_to(page, "output", "Shift")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("ArrowRight")
    page.press("ArrowRight")
    page.press("End")
    page.press("ArrowLeft")
    assert page.run("!document.getElementById('card').hidden")
    text = page.run("document.activeElement.textContent")
    assert page.text("#card-token") == text.replace(" ", "␣")
    assert page.run("document.activeElement.getAttribute('aria-describedby')") == "card"
    page.press("Escape")
    assert page.run("document.getElementById('card').hidden")


def test_the_card_stays_while_the_keys_scroll(edge: EdgeServer, open_page: OpenPage) -> None:
    page = open_page(edge.url, height=500)
    generate(page, "A story", max_new_tokens=600)
    finished(page)
    page.run("document.getElementById('output').focus()")
    for key, place in (
        ("Home", "span => span.matches(':first-child')"),
        ("End", "span => !span.nextSibling"),
    ):
        page.press(key)
        assert page.run(f"({place})(document.activeElement)")
        page.run("new Promise((done) => setTimeout(done, 100))")
        card, token = page.run(
            "[card, document.activeElement].map((e) => e.getBoundingClientRect().toJSON())"
        )
        assert 0 <= token["top"] < token["bottom"] <= 500
        assert card["top"] - token["bottom"] < 10
        assert token["top"] - card["bottom"] < 10
        assert not page.run("card.hidden")


def test_the_mode_and_the_settings_by_keyboard(edge: EdgeServer, open_page: OpenPage) -> None:
    page = open_page(edge.url, width=390, height=844)
    page.run("document.querySelector('[value=text]').focus()")
    page.press("ArrowRight")
    assert page.run("document.querySelector('[value=chat]').checked")
    assert page.text("#prompt-label") == "Message"
    tab_to(page, "open-settings")
    page.press("Enter")
    assert page.run(FOCUS) == "close-settings"
    assert page.run("document.getElementById('open-settings').ariaExpanded") == "true"
    page.press("Escape")
    assert page.run(FOCUS) == "open-settings"
    assert not page.run("document.getElementById('settings').checkVisibility()")


def test_screen_readers_hear_the_beginning_and_the_end_only(
    edge: EdgeServer, open_page: OpenPage
) -> None:
    page = open_page(edge.url)
    page.run(
        "window.said = []; new MutationObserver(() => said.push("
        "document.getElementById('status').textContent))"
        ".observe(document.getElementById('status'), { childList: true })"
    )
    generate(page, "A story", max_new_tokens=30)
    finished(page)
    assert page.run("said") == ["Generating.", "Finished: 30 tokens."]
    assert page.run("document.getElementById('output').closest('[aria-live], [role=log]')") is None
    assert unnamed_controls(page) == []


@pytest.mark.parametrize("width", [320, 360, 390])
def test_a_phone_needs_no_sideways_scrolling(
    edge: EdgeServer, open_page: OpenPage, width: int
) -> None:
    edge.engine.play = say(" " + "Donaudampfschifffahrtsgesellschaft" * 6)
    page = open_page(edge.url, width=width, height=740)
    assert overflow_px(page) <= 0
    assert small_targets(page) == []
    page.tap("#prompt")
    page.type("W" * 200)
    page.tap("#send")
    finished(page)
    assert overflow_px(page) <= 0
    page.tap(".t", 60)
    page.until("!document.getElementById('card').hidden")
    box = page.run("(({ left, right }) => [left, right])(card.getBoundingClientRect())")
    assert 0 <= box[0] < box[1] <= width
    page.tap("#prompt")
    page.until("document.getElementById('card').hidden")
    page.tap("#open-settings")
    assert overflow_px(page) <= 0
    assert small_targets(page) == []
    page.tap("#close-settings")


def test_a_phone_on_its_side_scrolls_as_a_whole(edge: EdgeServer, open_page: OpenPage) -> None:
    page = open_page(edge.url, width=500, height=320)
    generate(page, "A story", max_new_tokens=100)
    finished(page)
    assert overflow_px(page) <= 0
    assert page.run("document.getElementById('output').clientHeight") >= 160
    page.tap("#send")
    assert finished(page)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_aa(edge: EdgeServer, open_page: OpenPage, dark: bool) -> None:
    page = open_page(edge.url, dark=dark)
    assert low_contrasts(page) == []
    edge.engine.play = say(" text", eos=True)
    generate(page, "A story", seed=1)
    finished(page)
    page.run("document.querySelector('.t').focus()")
    page.hover(".t")
    page.until("!document.getElementById('card').hidden")
    # One token of each colour, and a message of each kind.
    page.run(
        "document.querySelector('.answer').append(...[0, 1, 2, 3, 4].map((level) => {"
        "const e = document.createElement('span'); e.className = `t p${level}`;"
        "e.textContent = `level ${level}`; return e; }))"
    )
    page.run("failure.hidden = false; failure.textContent = 'A failure'; 0")
    assert low_contrasts(page) == []
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(16, 23, 29)" if dark else "rgb(241, 244, 246)")


def test_the_theme_can_be_chosen_and_is_kept(edge: EdgeServer, open_page: OpenPage) -> None:
    page = open_page(edge.url)
    page.run("theme.value = 'dark'; theme.dispatchEvent(new Event('change'))")
    dark = "getComputedStyle(document.body).backgroundColor"
    assert page.run(dark) == "rgb(16, 23, 29)"
    page.send("Page.reload")
    page.until("document.getElementById('model')?.textContent && theme.value == 'dark'")
    assert page.run(dark) == "rgb(16, 23, 29)"


def test_many_tokens_stay_smooth(open_page: OpenPage) -> None:
    # Some thousand tokens per second, in many more pieces than there are frames.
    story = say(" and so on", per_delta=3, gap_s=0.002)
    with EdgeServer(story, max_total_tokens=4_096) as server:
        page = open_page(server.url)
        page.run(
            "window.frames_ = []; requestAnimationFrame(function next(now) {"
            "frames_.push(now); requestAnimationFrame(next); })"
        )
        generate(page, "A story", max_new_tokens=2_000)
        finished(page, 60)
        assert tokens_shown(page) == 2_000
        used = {m["name"]: m["value"] for m in page.send("Performance.getMetrics")["metrics"]}
        # A span and its text for each token, and what the page had before.
        assert used["Nodes"] < 2 * 2_000 + 1_000
        assert page.run("frames_.length") > 10
        gaps = page.run("frames_.slice(1).map((now, n) => now - frames_[n]).sort((a, b) => a - b)")
        print(f"frames {len(gaps)}, median gap {gaps[len(gaps) // 2]:.1f} ms, worst {gaps[-1]:.0f}")
        print({name: round(used[f"{name}Duration"], 2) for name in ("Script", "Layout", "Task")})
        assert gaps[len(gaps) // 2] < 100
