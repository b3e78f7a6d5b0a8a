"""What a visitor of the playground does and sees, for tests that drive it in a browser."""

import json
from typing import Any

from support.chromium import Page

# Colours as the browser computed them; the first ground that is not transparent counts.
_CONTRASTS = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const found = numbers(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    throw new Error("no ground");
  };
  const texts = [...document.querySelectorAll("body *")].filter((e) =>
    e.checkVisibility({ opacityProperty: true }) &&
    (e.matches("input, textarea, select") ||
     [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())));
  return texts.map((e) => {
    const [a, b] = [luminance(numbers(getComputedStyle(e).color)), luminance(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return [ratio, `${e.tagName} #${e.id} .${e.className} ${e.textContent.slice(0, 20)}`];
  });
})()
"""


def fill(page: Page, **values: object) -> None:
    """Set controls by their names, as typing would."""
    for name, value in values.items():
        page.run(f"document.querySelector('[name={name}]').value = {json.dumps(str(value))}")


def generate(page: Page, prompt: str, **values: object) -> None:
    """Type a prompt and press Control and Enter."""
    fill(page, **values)
    page.click("#prompt")
    page.run("document.getElementById('prompt').select()")
    page.type(prompt)
    page.press("Enter", "Control")


def finished(page: Page, timeout_s: float = 30.0) -> str:
    """Wait for the end; what ended it."""
    page.until("document.getElementById('reason').textContent != '–'", timeout_s)
    return page.text("#reason")


def answer(page: Page) -> str:
    """The generated text of the latest answer, without special tokens."""
    text = page.run(
        "[...[...document.querySelectorAll('.answer')].at(-1).querySelectorAll('.t')]"
        ".filter((e) => !e.matches('.special')).map((e) => e.textContent).join('')"
    )
    return str(text)


def tokens_shown(page: Page) -> int:
    """How many tokens are on the page."""
    return int(page.run("document.querySelectorAll('.t').length"))


def overflow_px(page: Page) -> int:
    """By how much the page is wider than a phone's screen."""
    return int(page.run("document.documentElement.scrollWidth - screen.width"))


def small_targets(page: Page) -> list[str]:
    """Controls that are visible and less than 44 pixels high or wide; a label counts as target."""
    found: list[str] = page.run(
        "[...document.querySelectorAll('button, input, select, textarea')]"
        ".filter((e) => e.checkVisibility())"
        ".map((e) => e.matches('[type=checkbox], [type=radio]') ? e.closest('label') : e)"
        ".filter((e) => { const b = e.getBoundingClientRect();"
        "  return b.height < 43.9 || b.width < 43.9; })"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    return found


def low_contrasts(page: Page, least: float = 4.5) -> list[Any]:
    """(ratio, element) of all visible texts that fall short of WCAG AA."""
    return [each for each in page.run(_CONTRASTS) if each[0] < least]


def unnamed_controls(page: Page) -> list[str]:
    """Roles of what can take the focus and has no name for a screen reader."""
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    return [
        node["role"]["value"]
        for node in nodes
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", ()))
        and not node.get("name", {}).get("value")
        and node["role"]["value"] != "RootWebArea"
    ]
