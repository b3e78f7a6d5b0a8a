"""`/docs`: the OpenAPI description as one page of plain HTML.

Rendered here, without any script, so the content-security policy can forbid everything but its
own style.
"""

import base64
import hashlib
import html
import json
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI, Response

from tiercel.api.openapi import PATH as OPENAPI_PATH

PATH = "/docs"
_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d5d9de, #3a3f46);
  --soft: light-dark(#f4f6f8, #1d2126); --link: light-dark(#0b5cad, #7db7ff); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
a { color: var(--link); } h2 { margin-top: 2rem; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem .8rem; overflow-wrap: anywhere; }
details > div { padding: 0 .8rem .6rem; }
code, pre { font: .875rem/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; border-radius: .3rem; }
.method { display: inline-block; min-width: 3.2rem; font-weight: 600; }
.about { white-space: pre-line; }
"""


class DocsRoute:
    """The page over an app's description."""

    def __init__(self, describe: Callable[[], dict[str, Any]]) -> None:
        """`describe` is asked at the first visit, when all routes are there."""
        self._describe = describe
        self._page: bytes | None = None
        digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
        self._headers = {
            "content-security-policy": (
                f"default-src 'none'; style-src 'sha256-{digest}'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }

    def add_to(self, app: FastAPI) -> None:
        """Register the route. It is no part of the API, so OpenAPI does not list it."""
        app.add_api_route(PATH, self.page, methods=["GET"], include_in_schema=False)

    async def page(self) -> Response:
        """The same bytes for everybody."""
        if self._page is None:
            self._page = render(self._describe()).encode()
        return Response(self._page, headers=self._headers, media_type="text/html")


def render(document: dict[str, Any]) -> str:
    """An OpenAPI document as HTML."""
    info = document["info"]
    title = html.escape(f"{info['title']} {info['version']}")
    operations = "".join(_sections(document))
    schemas = "".join(
        f'<details id="schema-{html.escape(name)}"><summary><code>{html.escape(name)}</code>'
        f"</summary><div>{_json(schema)}</div></details>"
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{title}</h1><p class="about">{html.escape(info["description"])}</p>'
        f'<p><a href="{OPENAPI_PATH}">OpenAPI description</a></p>'
        f"{operations}<h2>Schemas</h2>{schemas}</main></body></html>"
    )


def _sections(document: dict[str, Any]) -> Iterator[str]:
    """One section per tag, in the order of the routes."""
    sections: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["Other"])[0]
            sections.setdefault(tag, []).append(_operation(method, path, operation))
    for tag, operations in sections.items():
        yield f"<h2>{html.escape(tag)}</h2>{''.join(operations)}"


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {})
    takes = f"<h3>Body</h3>{_contents(body)}" if body else ""
    answers = "".join(
        f"<p><b>{html.escape(status)}</b> {html.escape(answer['description'])}"
        f"{_contents(answer.get('content', {}))}</p>"
        for status, answer in sorted(operation["responses"].items())
    )
    return (
        f'<details><summary><span class="method">{html.escape(method.upper())}</span> '
        f"<code>{html.escape(path)}</code> {html.escape(operation.get('summary', ''))}</summary>"
        f'<div><p class="about">{html.escape(operation.get("description", ""))}</p>'
        f"{takes}<h3>Answers</h3>{answers}</div></details>"
    )


def _contents(contents: dict[str, Any]) -> str:
    """Media types with links to their schemas."""
    items = [
        f"<code>{html.escape(kind)}</code> {_schema(content.get('schema', {}))}"
        for kind, content in contents.items()
    ]
    return f": {', '.join(items)}" if items else ""


def _schema(schema: dict[str, Any]) -> str:
    if schema.get("type") == "array":
        return f"array of {_schema(schema['items'])}"
    name = schema.get("$ref", "").rpartition("/")[2]
    if not name:
        return html.escape(str(schema.get("type", "")))
    return f'<a href="#schema-{html.escape(name)}">{html.escape(name)}</a>'


def _json(schema: dict[str, Any]) -> str:
    return f"<pre>{html.escape(json.dumps(schema, indent=2, ensure_ascii=False))}</pre>"
