"""A lane: the children of one job, the queue before them, and the clock that kills."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from tiercel.sandbox.errors import (
    SandboxBusy,
    SandboxCrashed,
    SandboxError,
    SandboxTimeout,
    SandboxUnavailable,
)
from tiercel.sandbox.limits import Limits
from tiercel.sandbox.messages import Start
from tiercel.sandbox.process import ChildProcess, ForkServer

logger = logging.getLogger(__name__)

GROW_S = 0.03  # a job waits so long before it asks for one more child
RETRY_S = 1.0  # between two attempts to start processes that do not start
LOOK_S = 0.05  # how often a running job is held against its limits, at least
SOON_S = 0.02  # and at most
COSTLY = 0.75  # of `cpu_s`: a job that took so much is followed by a rest
SLACK_S = 0.02  # the clock of a processor's time may be so late


class _Job:
    """One payload on its way. `answer` is cancelled when nobody waits for it any more."""

    def __init__(self, payload: bytes, submitted: float, answer: "asyncio.Future[Any]") -> None:
        self.payload = payload
        self.submitted = submitted
        self.answer = answer
        self.taken = False
        self.in_turn = False
        self.spent_s = 0.0  # of a processor, so far as is known

    def fail(self, error: SandboxError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Lane:
    """See SandboxPool."""

    def __init__(
        self, job: str, context: Any, limits: Limits, environment: Mapping[str, str] | None
    ) -> None:
        self._limits = limits
        self._environment = environment
        self._start = Start(job, context, limits.memory_bytes, limits.reply_bytes)
        self._children: set[ChildProcess] = set()  # those that have started
        self._server: asyncio.Task[ForkServer] | None = None
        self._queue: asyncio.Queue[_Job] = asyncio.Queue()
        self._workers: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(limits.turns)
        self._retry_at = 0.0  # the loop's time before which nothing starts
        self._busy = 0  # workers with a job; the others wait for one, or will
        self.waiting = 0  # jobs that no child has taken yet

    @property
    def _free(self) -> int:
        return len(self._workers) - self._busy

    @property
    def ready(self) -> int:
        """Children that have started."""
        return len(self._children)

    @property
    def children(self) -> int:
        """Processes, starting ones included."""
        return len(self._workers)

    def prewarm(self) -> None:
        """Start what is kept."""
        while len(self._workers) < self._limits.children:
            self._add_worker()

    async def submit(self, payload: bytes) -> bytes:
        """See SandboxPool.run; the answer is still encoded."""
        if self.waiting >= self._limits.max_waiting:
            raise SandboxBusy("too many others wait")
        loop = asyncio.get_running_loop()
        job = _Job(payload, loop.time(), loop.create_future())
        self.waiting += 1
        self._queue.put_nowait(job)
        self.prewarm()
        timers = (
            loop.call_later(GROW_S, self._grow, job),
            loop.call_later(self._limits.wait_s, self._give_up, job),
        )
        try:
            return bytes(await job.answer)
        finally:
            for timer in timers:
                timer.cancel()
            self._leave_queue(job)

    async def close(self) -> None:
        """End everything; whoever waits gets SandboxBusy."""
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        if self._server is not None:
            self._server.cancel()
            (server,) = await asyncio.gather(self._server, return_exceptions=True)
            if isinstance(server, ForkServer):
                await server.close()
        while not self._queue.empty():
            self._queue.get_nowait().fail(_closing())

    def _grow(self, job: _Job) -> None:
        if not job.taken and self._free < min(self.waiting, self._limits.turns):
            self._make_room()

    def _make_room(self) -> bool:
        """Whether one more child may, and will, be there."""
        if len(self._workers) >= self._limits.max_children:
            return False
        self._add_worker()
        return True

    def _give_up(self, job: _Job) -> None:
        if not job.taken:
            job.fail(SandboxBusy(f"no process was free for {self._limits.wait_s:g} s"))

    def _leave_queue(self, job: _Job) -> None:
        if not job.taken:
            job.taken = True
            job.payload = b""
            self.waiting -= 1

    def _add_worker(self) -> None:
        kept = len(self._workers) < self._limits.children
        worker = asyncio.ensure_future(self._work(kept))
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    async def _work(self, kept: bool) -> None:
        """One child after the other, until the pool closes or there is too little to do."""
        child = await self._forked()
        try:
            while (job := await self._next_job(kept)) is not None:
                try:
                    await self._take_turn(job)
                    child = await self._usable(child)
                    await self._serve(child, job)
                finally:
                    self._end_turn(job)
                if child is not None:
                    child = await self._usable(child)
        finally:
            if child is not None:
                await self._end(child)

    async def _usable(self, child: ChildProcess | None) -> ChildProcess | None:
        """The child, or another in its place; None when there is none to be had."""
        if child is not None and child.usable and not child.demoted:
            return child
        if child is not None:
            await self._end(child)
        return await self._forked()

    async def _end(self, child: ChildProcess) -> None:
        self._children.discard(child)
        await child.kill()

    async def _forked(self) -> ChildProcess | None:
        """A new child, or None; then the log says why."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._retry_at:
            return None
        try:
            server = await self._fork_server()
            child = await server.fork()
        except (SandboxError, OSError) as error:
            logger.error("the sandbox for %s does not start: %s", self._start.job, error)
            self._retry_at = loop.time() + RETRY_S
            return None
        self._children.add(child)
        return child

    async def _fork_server(self) -> ForkServer:
        server = self._server
        if server is not None and server.done():
            failed = server.cancelled() or server.exception() is not None
            if failed or not server.result().alive:
                self._server = None
                if not failed:
                    await server.result().close()
        if self._server is None:
            self._server = asyncio.ensure_future(ForkServer.started(self._start, self._environment))
        return await asyncio.shield(self._server)

    async def _serve(self, child: ChildProcess | None, job: _Job) -> None:
        if job.taken:  # it was given up while its child started
            return
        self._busy += 1
        try:
            payload = job.payload
            self._leave_queue(job)
            if child is not None:
                await self._run(child, job, payload)
            job.fail(SandboxUnavailable("its process does not start"))
        finally:
            self._busy -= 1

    async def _next_job(self, kept: bool) -> _Job | None:
        """None when a child that is not kept has had nothing to do."""
        while True:
            try:
                async with asyncio.timeout(None if kept else self._limits.idle_s):
                    job = await self._queue.get()
            except TimeoutError:
                return None
            if not job.taken:
                return job

    async def _take_turn(self, job: _Job) -> None:
        await self._turns.acquire()
        job.in_turn = True

    def _end_turn(self, job: _Job, *, crowded: bool = False) -> None:
        """The next job may start, beside this one where there is a child for it.

        Behind one that took as much as few do, after a rest: but not where it ends its turn because
        it gets little of the machine.
        """
        if job.in_turn:
            job.in_turn = False
            costly = not crowded and job.spent_s >= COSTLY * self._limits.cpu_s
            rest_s = self._limits.rest_s if costly else 0.0
            asyncio.get_running_loop().call_later(rest_s, self._turns.release)

    async def _run(self, child: ChildProcess, job: _Job, payload: bytes) -> None:
        """Let a child do a job; afterwards it may not be usable."""
        work = asyncio.ensure_future(child.run(payload))
        try:
            await self._watch(child, job, work)
            answer = work.result()
            if not job.answer.done():
                job.answer.set_result(answer)
        except SandboxError as error:
            if not child.usable:
                logger.warning("a sandbox process for %s was ended: %s", self._start.job, error)
            elif isinstance(error, SandboxCrashed):
                kind = str(error).partition(":")[0]  # the rest may be a caller's words
                logger.error("the sandbox job %s has a defect: %s", self._start.job, kind)
            job.fail(error)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            job.fail(_closing())  # where it has no answer: this worker was cancelled

    async def _watch(
        self, child: ChildProcess, job: _Job, work: "asyncio.Future[msgspec.Raw]"
    ) -> None:
        """Wait for the end of the work. Raises SandboxTimeout, or SandboxBusy in the midst of it.

        Time on the clock is no measure of a job: neighbours, the engine and other jobs spend it.
        """
        loop, limits = asyncio.get_running_loop(), self._limits
        began, before_s = loop.time(), child.spent_s
        while not work.done():
            job.spent_s = child.spent_s - before_s
            left_s = limits.cpu_s - job.spent_s
            urgent_s = limits.urgent_s - job.spent_s
            due_s = urgent_s if job.in_turn else left_s
            if due_s <= 0 and limits.nice and not child.demoted:
                child.demote(limits.nice)
            waited_s = loop.time() - job.submitted
            if left_s > 0:
                if waited_s >= limits.wait_s + limits.least_s:
                    raise SandboxBusy("the machine is too busy")
                if child.demoted and not job.in_turn and loop.time() - began >= limits.patience_s:
                    self._make_way(SandboxBusy("the machine is too busy for this and others"))
            elif waited_s >= limits.run_s:
                raise SandboxTimeout(f"it takes more than {waited_s:.1f} s")
            else:
                self._end_turn(job)
                self._make_way(
                    SandboxTimeout(f"it takes more than {limits.cpu_s:g} s of a processor")
                )
            if job.in_turn and job.spent_s < (loop.time() - began) / 2 - SLACK_S:
                # Others take the machine, and one more hardly slows them. Of a nice job they do so
                # within 0.1 s, which is as good as a rest.
                self._end_turn(job, crowded=True)
                if self._starved:
                    self._make_room()
            pause_s = min((LOOK_S, *(each_s for each_s in (urgent_s, left_s) if each_s > 0)))
            await asyncio.wait({work}, timeout=max(pause_s, SOON_S))
        job.spent_s = child.spent_s - before_s

    def _make_way(self, why: SandboxError) -> None:
        """Raises `why` in the midst of a job, if others need its child."""
        if self._starved and not self._make_room():
            raise why

    @property
    def _starved(self) -> bool:
        """Whether a job waits and nobody is there to take it."""
        return self.waiting > 0 and not self._free


def _closing() -> SandboxBusy:
    return SandboxBusy("the server is shutting down")
