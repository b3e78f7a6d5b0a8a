"""SandboxPool: jobs in, answers out, with one lane of child processes per job.

Lanes keep a job's bombs away from another's work. Within a lane jobs are served in order, each gets
the same share of a processor, the first part of it at this process's own priority, and more
children are started while jobs wait. A job that wants more goes on until others need its child.
Only processor time is held against a job; what the clock ends has met a busy machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tiercel.sandbox.errors import SandboxBusy
from tiercel.sandbox.jobs import known
from tiercel.sandbox.lane import Lane
from tiercel.sandbox.limits import DEFAULT_LIMITS, Limits

_NEEDED_VARIABLES = ("PATH", "HOME", "LANG", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_NEEDED_PREFIXES = ("PYTHON", "LC_")


@dataclass(frozen=True)
class LaneState:
    """What a lane does right now."""

    children: int  # processes, starting ones included
    ready: int  # processes that can take a job or have one
    waiting: int  # jobs that no child has taken yet


class SandboxPool:
    """All sandbox children of one process. Used on one event loop; `close` it there.

    Use: `add` each job, `prewarm` once there is time for it, `run`, `close`.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Of `environment` the children get what Python needs; None is this process's own, all."""
        self._environment = None if environment is None else _needed(environment)
        self._lanes: dict[str, Lane] = {}
        self._closed = False

    def add(self, job: str, context: Any, limits: Limits = DEFAULT_LIMITS) -> None:
        """Open a lane for a job of the list in `jobs`. No process is started yet.

        `context` goes to each of its children once. Raises KeyError for a name not in the list.
        """
        if not known(job):
            raise KeyError(job)
        self._lanes[job] = Lane(job, context, limits, self._environment)

    def prewarm(self) -> None:
        """Start the children that every lane keeps, without waiting for them."""
        if not self._closed:
            for lane in self._lanes.values():
                lane.prewarm()

    async def run(self, job: str, payload: Any) -> Any:
        """The answer to one payload, as plain msgpack values.

        Raises SandboxError, and what msgspec raises for a payload that it cannot encode:
        UnicodeEncodeError, OverflowError (more than 64 bits), RecursionError, TypeError.
        A caller that is cancelled gets no answer; the job may still run to its limit.
        """
        encoded = msgspec.msgpack.encode(payload)
        if self._closed:
            raise SandboxBusy("the server is shutting down")
        return msgspec.msgpack.decode(await self._lanes[job].submit(encoded))

    def state(self, job: str) -> LaneState:
        """How busy a job's lane is."""
        lane = self._lanes[job]
        return LaneState(lane.children, lane.ready, lane.waiting)

    async def close(self) -> None:
        """End all children; jobs under way end with SandboxBusy. Leaves no process behind."""
        self._closed = True
        for lane in self._lanes.values():
            await lane.close()


def _needed(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child that only computes needs: no secret is among it, whatever it is called."""
    return {
        name: value
        for name, value in environment.items()
        if name in _NEEDED_VARIABLES or name.startswith(_NEEDED_PREFIXES)
    }
