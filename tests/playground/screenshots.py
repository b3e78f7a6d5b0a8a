"""Takes the README's pictures of the playground from a real server: `make screenshots`."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from support.chromium import Chromium, Page, find_chromium
from support.playground import finished, generate
from support.server import make_server

PROMPT = "Fellow citizens of the Senate and of the House of Representatives:"
DEVICES: dict[str, dict[str, Any]] = {
    "desktop": {"width": 1280, "height": 800},
    "desktop-dark": {"width": 1280, "height": 800, "dark": True},
    "phone": {"width": 390, "height": 844},
    "phone-dark": {"width": 390, "height": 844, "dark": True},
}
# A token that was a surprise, and that is written large enough to be seen.
TOKEN = "[...document.querySelectorAll('.t')].findIndex((e, n) => n > {after} && /p[234]/.test("
TOKEN += "e.className) && e.textContent.length > 6)"


def main(folder: Path) -> None:
    """One picture per device of a text with a token looked at, and one of a chat."""
    program = find_chromium()
    if program is None:
        sys.exit("Chromium is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        flags = ("--dtype", "float32")
        with (
            make_server(Path(temporary), None, *flags) as server,
            Chromium(program, Path(temporary) / "profile") as browser,
        ):
            for name, device in DEVICES.items():
                with browser.page(**device) as page:
                    page.open(f"{server.url}/playground")
                    page.until("document.getElementById('model').textContent")
                    _text(page, phone=device["width"] < 500)
                    page.screenshot(folder / f"playground-{name}.png")
            with browser.page() as page:
                page.open(f"{server.url}/playground")
                _chat(page)
                page.screenshot(folder / "playground-chat.png")


def _text(page: Page, *, phone: bool) -> None:
    generate(page, PROMPT, seed=2, max_new_tokens=110 if phone else 160)
    finished(page)
    place = page.run(TOKEN.format(after=30 if phone else 45))
    (page.tap if phone else page.hover)(".t", place)
    page.until("!document.getElementById('card').hidden")


def _chat(page: Page) -> None:
    page.click("#modes label", 1)
    for seed, message in ((4, "What do you know of the sea?"), (11, "And of the whale?")):
        generate(page, message, seed=seed, max_new_tokens=60)
        finished(page)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
