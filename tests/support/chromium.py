"""A real Chromium without a window, driven over its debugging pipe: no driver, no package.

Commands are those of the Chrome DevTools Protocol. A `Page` has a browser context of its own, so
nothing is stored between tests, and it collects what went wrong and what was asked for on the way.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-pipe",
    # A mouse, which a machine without a desk does not have.
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,"
    "primaryPointerType=4,availablePointerTypes=4",
)
COMMAND_TIMEOUT_S = 30.0
# The protocol's descriptors are 3 and 4, whatever the pipes were given here.
_PLUMBING = """
import fcntl, os, sys
reading, writing = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(reading, 3)
os.dup2(writing, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "ArrowLeft": (37, ""),
    "ArrowRight": (39, ""),
    "Home": (36, ""),
    "End": (35, ""),
    " ": (32, " "),
}
MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


def find_chromium() -> str | None:
    """The program, where it is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class ProtocolError(Exception):
    """Chromium refused a command."""


class Chromium:
    """One browser process; a context manager that leaves none of its processes behind."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._writing = os.pipe()
        self._reading, from_browser = os.pipe()
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PLUMBING, str(to_browser), str(from_browser), *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._lock = threading.Lock()
        self._replies: dict[int, Future[dict[str, Any]]] = {}
        self._listeners: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._last_id = 0
        self._reader = threading.Thread(target=self._read, name="chromium", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.send("Browser.close")
            self._process.wait(10)
        except (ProtocolError, TimeoutError, OSError, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        os.close(self._writing)
        self._reader.join(10)

    def send(self, method: str, session: str = "", /, **parameters: Any) -> dict[str, Any]:
        """The result of one command. Raises ProtocolError, or TimeoutError without an answer."""
        reply: Future[dict[str, Any]] = Future()
        with self._lock:
            self._last_id += 1
            self._replies[self._last_id] = reply
            message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
            if session:
                message["sessionId"] = session
            data = json.dumps(message).encode() + b"\0"
            while data:
                data = data[os.write(self._writing, data) :]
        answer = reply.result(COMMAND_TIMEOUT_S)
        if "error" in answer:
            raise ProtocolError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def page(self, *, width: int = 1280, height: int = 800, dark: bool = False) -> "Page":
        """A new page with storage of its own. `width` up to 500 pixels is a touch screen."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"], context)
        self._listeners[page.session] = page.notice
        page.prepare(width, height, dark=dark)
        return page

    def _read(self) -> None:
        with os.fdopen(self._reading, "rb") as pipe:
            rest = b""
            while chunk := pipe.read1(1 << 16):
                *messages, rest = (rest + chunk).split(b"\0")
                for message in messages:
                    self._dispatch(json.loads(message))
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(ProtocolError("the browser is gone"))

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._replies.pop(message["id"]).set_result(message)
        elif message.get("sessionId") in self._listeners:
            self._listeners[message["sessionId"]](message)


class Page:
    """One tab. `problems` are errors, warnings and policy violations; `requests` all addresses."""

    def __init__(self, browser: Chromium, session: str, context: str) -> None:
        self.session = session
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._browser = browser
        self._context = context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._browser.send("Target.disposeBrowserContext", browserContextId=self._context)

    def prepare(self, width: int, height: int, *, dark: bool) -> None:
        """Listen, and take the shape of a device."""
        for domain in ("Page", "Runtime", "Log", "Network", "Audits", "Performance"):
            self.send(f"{domain}.enable")
        phone = width <= 500
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def send(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """One command to this page."""
        return self._browser.send(method, self.session, **parameters)

    def allow(self, *permissions: str) -> None:
        """What a visitor would be asked for."""
        self._browser.send(
            "Browser.grantPermissions",
            permissions=list(permissions),
            browserContextId=self._context,
        )

    def notice(self, event: dict[str, Any]) -> None:
        """Called from the reading thread with every event of this page."""
        method, params = event["method"], event["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:2000])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(json.dumps(params["args"])[:2000])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(json.dumps(params["entry"])[:2000])
        elif method == "Audits.issueAdded":
            self.problems.append(json.dumps(params["issue"])[:2000])

    def open(self, url: str) -> None:
        """Go there, and wait until its scripts have run."""
        self.send("Page.navigate", url=url)
        self.until(
            f"location.href.startsWith({json.dumps(url)}) && document.readyState=='complete'"
        )

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.send(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in answer:
            raise ProtocolError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def until(self, expression: str, timeout_s: float = 20.0) -> None:
        """Poll until the expression is true. Fails the test after the timeout."""
        deadline = time.monotonic() + timeout_s
        while not self.run(f"!!({expression})"):
            if time.monotonic() > deadline:
                raise AssertionError(f"never true: {expression}; problems: {self.problems}")
            time.sleep(0.01)

    def text(self, selector: str) -> str:
        """What an element shows."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, *modifiers: str) -> None:
        """A key with its modifiers, down and up."""
        code, text = KEYS[key]
        event = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": code,
            "modifiers": sum(MODIFIERS[name] for name in modifiers),
        }
        down = {"text": text} if text and not modifiers else {}
        kind = "keyDown" if down else "rawKeyDown"
        self.send("Input.dispatchKeyEvent", type=kind, **event, **down)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def centre(self, selector: str, nth: int = 0) -> tuple[float, float]:
        """The middle of the nth such element's first box, after scrolling to it."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelectorAll({json.dumps(selector)})[{nth}];"
            "e.scrollIntoView({block: 'nearest'}); const b = e.getClientRects()[0];"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return x, y

    def hover(self, selector: str, nth: int = 0) -> None:
        """Move the mouse over an element."""
        x, y = self.centre(selector, nth)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str, nth: int = 0) -> None:
        """Press and release the left button of the mouse on an element."""
        x, y = self.centre(selector, nth)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def tap(self, selector: str, nth: int = 0) -> None:
        """Touch an element with a finger."""
        x, y = self.centre(selector, nth)
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def screenshot(self, path: Path) -> None:
        """What the window shows, as PNG."""
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
