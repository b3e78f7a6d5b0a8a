"""Sandbox pools over chat templates of every kind, the hostile ones included."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil

from tiercel.sandbox.limits import Limits
from tiercel.sandbox.pool import SandboxPool

JOB = "render_chat"
FORK_SERVER = "tiercel.sandbox.fork_server"

# Behaves as its first message says.
BY_MESSAGE = """\
{%- set text = messages[0].content -%}
{%- if text == 'spin' -%}
{%- for a in range(99999) -%}{%- for b in range(99999) -%}{%- endfor -%}{%- endfor -%}
{%- elif text == 'eat' -%}{{ 'a' * 10 ** 9 }}
{%- elif text == 'eat slowly' -%}
{%- set held = namespace(text='a') -%}
{%- for a in range(40) -%}{%- set held.text = held.text + held.text -%}{%- endfor -%}
{%- elif text == 'talk' -%}{{ 'a' * 5000 }}
{%- else -%}<{{ text }}>
{%- endif -%}
"""


def payload(text: str) -> dict[str, Any]:
    """One user message for the template."""
    return {
        "messages": [{"role": "user", "content": text}],
        "tools": None,
        "continue": False,
    }


@asynccontextmanager
async def pool_over(
    source: str = BY_MESSAGE, limits: Limits | None = None, **variables: str
) -> AsyncIterator[SandboxPool]:
    """A pool that renders `source`, closed at the end of the block."""
    pool = SandboxPool()
    pool.add(JOB, {"source": source, "variables": variables}, limits or Limits())
    try:
        yield pool
    finally:
        await pool.close()


_others: set[int] = set()


def leave_out_what_runs() -> None:
    """Servers of other tests have sandboxes, too: `processes` tells only of later ones."""
    _others.clear()
    _others.update(process.pid for process in psutil.Process().children(recursive=True))


def processes() -> list[psutil.Process]:
    """The sandbox processes below this one: fork servers, children, and zombies of either."""
    found = []
    for process in psutil.Process().children(recursive=True):
        if process.pid in _others:
            continue
        try:
            if process.status() == psutil.STATUS_ZOMBIE or FORK_SERVER in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def children() -> list[psutil.Process]:
    """Those that were forked, and so have no child of their own."""
    mine = psutil.Process().pid
    return [process for process in processes() if process.ppid() != mine]


async def warm(pool: SandboxPool, count: int) -> None:
    """Wait until the lane's first `count` children answer."""
    pool.prewarm()
    deadline = time.monotonic() + 30
    while pool.state(JOB).ready < count:
        if time.monotonic() > deadline:
            raise AssertionError("the children do not start")
        await asyncio.sleep(0.02)
