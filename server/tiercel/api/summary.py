"""The line that ends a request: written when its answer has been sent, with the answer's status.

Pure ASGI. Whoever knows more of a request notes it here: its record, or what refused it. Probes,
scrapes and pages have no line, unless they are refused for their key.
"""

import logging
import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiercel.api.identity import identity_of

logger = logging.getLogger(__name__)

GONE = 499  # the status of an answer that was never begun, because its client had left; nginx's
_QUIET = ("GET", "HEAD", "OPTIONS")
_MAX_ROUTE = 200  # characters of a path that is no route of ours


class Summary:
    """What is known of one request in the end. Never a prompt or an answer."""

    def __init__(self) -> None:
        self.level = logging.INFO
        self.outcome = ""
        self.fields: Mapping[str, object] = {}

    def note(self, level: int, outcome: str, fields: Mapping[str, object]) -> None:
        """The first word is the one that counts: later ones come from further away."""
        if not self.outcome:
            self.level, self.outcome, self.fields = level, outcome, fields

    def refused(self, error_type: str, error: str = "") -> None:
        """Before it had a record."""
        sentence = {"error": error} if error else {}
        self.note(logging.INFO, "refused", {"error_type": error_type, **sentence})


def summary_of(scope: Scope) -> Summary:
    """What will be written; one that nobody writes where the middleware did not run."""
    summary: Summary = scope.get("state", {}).get("summary") or Summary()
    return summary


class Summarized:
    """Writes one line per request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.monotonic(), 0
        summary = scope.setdefault("state", {})["summary"] = Summary()

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception:
            status = status or 500  # the server's own answer to what nobody has caught
            raise
        finally:
            if scope["method"] not in _QUIET or status in (401, 403):
                _write(scope, summary, status or GONE, time.monotonic() - began_s)


def _write(scope: Scope, summary: Summary, status: int, total_s: float) -> None:
    if not summary.outcome:  # a request without a record
        summary.outcome = "done" if status < 400 else "refused"
        if status >= 500 and status != 503:
            summary.level, summary.outcome = logging.ERROR, "failed"
    identity = identity_of(scope)
    trace = {"trace_id": identity.trace_id} if identity.trace_id else {}
    fields = {
        "route": scope["path"][:_MAX_ROUTE],
        "request_id": identity.request_id,
        **trace,
        "status": status,
        "total_ms": round(total_s * 1e3, 1),
        **summary.fields,  # a record knows its own route, trace and times
    }
    logger.log(summary.level, "request %s", summary.outcome, extra={"fields": fields})
