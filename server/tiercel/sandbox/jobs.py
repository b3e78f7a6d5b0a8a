"""The closed list of what a sandbox child can do. Nothing else is ever called in one.

A job is a function that prepares: it takes the context of its lane, once per process, and returns
the function that answers one payload. Context, payloads and answers are plain msgpack values. The
latter may raise JobRefused. Once prepared, a child can open no file and no socket, so whatever a
job imports or reads has to be loaded by then.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

Answer = Callable[[Any], Any]
Prepare = Callable[[Any], Answer]

_JOBS = {
    "render_chat": "tiercel.text.chat_render:render_chat",
    "check_grammar": "tiercel.guidance.check:check_grammar",
}


def prepare(job: str, context: Any) -> Answer:
    """Import a job and let it prepare. Raises KeyError for a name that is not in the list."""
    module, _, name = _JOBS[job].partition(":")
    function: Prepare = getattr(import_module(module), name)
    return function(context)


def known(job: str) -> bool:
    """Whether there is such a job."""
    return job in _JOBS
