"""`/playground`: one document with its style and script inside, and the headers that fence it in.

The files beside this one are put together when the app is made. Nothing is fetched but the
server's own routes, and the content-security policy says so to the browser.
"""

import base64
import hashlib
from importlib.resources import files

from fastapi import FastAPI, Request, Response

PATH = "/playground"
STYLES = ("style.css", "controls.css")
# One scope, so the order only matters to what runs at once, which is in main.js.
SCRIPTS = ("sse.js", "wire.js", "requests.js", "tokens.js", "card.js", "trace.js", "main.js")


class PlaygroundRoute:
    """The page, the same for everybody: it holds no secret and no user's data."""

    def __init__(self, max_top_n_tokens: int) -> None:
        style = _joined(STYLES)
        script = f'"use strict";\n(() => {{\n{_joined(SCRIPTS)}}})();\n'
        html = _read("page.html").replace("__TOP_TOKENS__", str(max_top_n_tokens))
        html = html.replace("/* style */", style).replace("/* script */", script)
        self.document = html.encode()
        self._headers = {
            "content-security-policy": _policy(style, script),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cache-control": "no-cache",
            "etag": f'"{hashlib.sha256(self.document).hexdigest()[:32]}"',
        }

    def add_to(self, app: FastAPI) -> None:
        """Register the route. It is no part of the API, so OpenAPI does not list it."""
        app.add_api_route(PATH, self.page, methods=["GET"], include_in_schema=False)

    async def page(self, request: Request) -> Response:
        """The document, or 304 for a browser that has it."""
        if request.headers.get("if-none-match") == self._headers["etag"]:
            return Response(status_code=304, headers=self._headers)
        return Response(self.document, headers=self._headers, media_type="text/html")


def _policy(style: str, script: str) -> str:
    """Only this very script and style may run; trusted types forbid HTML made from strings."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(script)}",
            f"style-src {_source(style)}",
            "img-src data:",  # the icon
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _source(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join(_read(name) for name in names)


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
