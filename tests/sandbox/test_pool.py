"""Jobs that end well, jobs that have to be killed, and what is left afterwards."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.sandbox import BY_MESSAGE, JOB, children, payload, pool_over, processes, warm
from tiercel.sandbox.errors import (
    JobRefused,
    SandboxBusy,
    SandboxCrashed,
    SandboxOutOfMemory,
    SandboxReplyTooLarge,
    SandboxTimeout,
    SandboxUnavailable,
)
from tiercel.sandbox.limits import Limits
from tiercel.sandbox.pool import SandboxPool

ONE = Limits(run_s=0.5, children=1, max_children=1, wait_s=20.0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)
    assert processes() == []  # neither a process nor a zombie


def test_the_list_of_jobs_is_closed() -> None:
    with pytest.raises(KeyError):
        SandboxPool().add("os:system", None)


def test_answers_and_refusals_leave_the_child_alive() -> None:
    async def test() -> None:
        async with pool_over("{{ bos_token }}{{ messages[0].content }}", ONE, bos_token="<s>") as p:
            assert await p.run(JOB, payload("Grüße 🦅 \u2028")) == "<s>Grüße 🦅 \u2028"
            (child,) = children()
            with pytest.raises(JobRefused) as refused:
                await p.run(JOB, {**payload(""), "messages": [{"content": "x" * 1_000_001}]})
            assert refused.value.kind == "template"
            assert await p.run(JOB, payload("again")) == "<s>again"
            assert children() == [child]

    run(test())


@pytest.mark.parametrize(
    ("text", "error", "run_s"),
    [
        ("spin", SandboxTimeout, 0.5),
        ("eat", SandboxOutOfMemory, 5.0),
        ("eat slowly", SandboxOutOfMemory, 5.0),
    ],
)
def test_a_bomb_costs_its_child_and_nothing_else(
    text: str, error: type[Exception], run_s: float
) -> None:
    async def test() -> None:
        limits = Limits(run_s=run_s, children=1, max_children=1, wait_s=20.0)
        async with pool_over(limits=limits) as pool:
            await warm(pool, 1)
            (before,) = children()
            began = time.monotonic()
            with pytest.raises(error):
                await pool.run(JOB, payload(text))
            assert time.monotonic() - began < run_s + 1.5
            assert await pool.run(JOB, payload("next")) == "<next>"
            assert before not in children()

    run(test())


def test_a_job_with_a_defect_says_so_and_keeps_its_child() -> None:
    async def test() -> None:
        async with pool_over(limits=ONE) as pool:
            await warm(pool, 1)
            before = children()
            with pytest.raises(SandboxCrashed, match="KeyError: 'messages'"):
                await pool.run(JOB, {})
            assert children() == before

    run(test())


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_names_the_signal(number: signal.Signals) -> None:
    async def test() -> None:
        async with pool_over(limits=Limits(children=1, max_children=1)) as pool:
            await warm(pool, 1)
            job = asyncio.ensure_future(pool.run(JOB, payload("spin")))
            await asyncio.sleep(0.1)
            children()[0].send_signal(number)
            with pytest.raises(SandboxCrashed, match=number.name):
                await job
            assert await pool.run(JOB, payload("next")) == "<next>"

    run(test())


def test_a_reply_that_is_too_large() -> None:
    async def test() -> None:
        limits = Limits(reply_bytes=4_000, children=1, max_children=1)
        async with pool_over(limits=limits) as pool:
            with pytest.raises(SandboxReplyTooLarge):
                await pool.run(JOB, payload("talk"))
            assert await pool.run(JOB, payload("next")) == "<next>"

    run(test())


def test_a_child_that_cannot_start_is_an_error_of_the_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        pool = SandboxPool()
        pool.add(JOB, "no context", ONE)
        try:
            with pytest.raises(SandboxUnavailable, match="does not start"):
                await pool.run(JOB, payload("x"))
        finally:
            await pool.close()

    run(test())
    assert "does not start: TypeError" in caplog.text


def test_a_caller_that_goes_away_leaves_the_child_to_its_limit() -> None:
    async def test() -> None:
        async with pool_over(limits=ONE) as pool:
            await warm(pool, 1)
            bomb = asyncio.ensure_future(pool.run(JOB, payload("spin")))
            waiting = asyncio.ensure_future(pool.run(JOB, payload("never asked")))
            await asyncio.sleep(0.05)
            assert pool.state(JOB).waiting == 1
            bomb.cancel()
            waiting.cancel()
            await asyncio.gather(bomb, waiting, return_exceptions=True)
            assert pool.state(JOB).waiting == 0
            assert await pool.run(JOB, payload("next")) == "<next>"

    run(test())


def test_no_more_jobs_wait_than_may() -> None:
    async def test() -> None:
        limits = Limits(
            cpu_s=0.5, run_s=1.0, least_s=4.0, wait_s=0.2,
            children=1, max_children=1, max_waiting=2,
        )  # fmt: skip
        async with pool_over(limits=limits) as pool:
            await warm(pool, 1)
            bomb = asyncio.ensure_future(pool.run(JOB, payload("spin")))
            await asyncio.sleep(0.05)
            waiting = [asyncio.ensure_future(pool.run(JOB, payload("x"))) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(SandboxBusy, match="too many"):
                await pool.run(JOB, payload("x"))
            for job in waiting:
                with pytest.raises(SandboxBusy, match=r"for 0\.2 s"):
                    await job
            with pytest.raises(SandboxTimeout):
                await bomb

    run(test())


def test_close_ends_jobs_under_way() -> None:
    async def test() -> None:
        async with pool_over(limits=Limits(children=2)) as pool:
            await warm(pool, 2)
            jobs = [asyncio.ensure_future(pool.run(JOB, payload("spin"))) for _ in range(6)]
            await asyncio.sleep(0.1)
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(answer) for answer in answers] == [SandboxBusy] * 6
        with pytest.raises(SandboxBusy, match="shutting down"):
            await pool.run(JOB, payload("x"))

    run(test())


def test_a_fork_server_that_ends_is_replaced() -> None:
    async def test() -> None:
        async with pool_over(limits=ONE) as pool:
            await warm(pool, 1)
            (child,) = children()
            (server,) = [each for each in processes() if each != child]
            server.kill()
            await asyncio.to_thread(psutil.wait_procs, [child], timeout=10)
            assert not child.is_running()
            assert await pool.run(JOB, payload("next")) == "<next>"
            assert children()[0].pid != child.pid

    run(test())


def test_close_while_children_start() -> None:
    async def test() -> None:
        for pause_s in (0.0, 0.01, 0.1):
            async with pool_over(BY_MESSAGE) as pool:
                pool.prewarm()
                await asyncio.sleep(pause_s)

    run(test())


def test_extra_children_end_when_there_is_nothing_to_do() -> None:
    async def test() -> None:
        limits = Limits(run_s=0.6, children=1, max_children=3, turns=3, idle_s=0.1)
        async with pool_over(limits=limits) as pool:
            await warm(pool, 1)
            jobs = [asyncio.ensure_future(pool.run(JOB, payload("spin"))) for _ in range(3)]
            await asyncio.sleep(0.3)
            assert pool.state(JOB).children == 3
            await asyncio.gather(*jobs, return_exceptions=True)
            deadline = time.monotonic() + 20
            while pool.state(JOB).children > 1 and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            assert pool.state(JOB).children == 1
            assert await pool.run(JOB, payload("next")) == "<next>"

    run(test())


def test_a_child_has_little_to_work_with() -> None:
    async def test() -> None:
        environment = {**os.environ, "SECRET_OF_MINE": "x", "HF_TOKEN": "hf_y"}
        pool = SandboxPool(environment)
        pool.add(JOB, {"source": BY_MESSAGE, "variables": {}}, ONE)
        await warm(pool, 1)
        (child,) = children()
        limits = Path(f"/proc/{child.pid}/limits").read_text()
        rows = {row[:25].strip(): row[25:].split()[:2] for row in limits.splitlines()}
        assert rows["Max open files"] == ["0", "0"]
        assert rows["Max core file size"] == ["0", "0"]
        assert rows["Max data size"] == [str(400 << 20)] * 2
        assert child.nice() == psutil.Process().nice()
        assert not {"SECRET_OF_MINE", "HF_TOKEN"} & set(child.environ())
        opened = [str(each.readlink()) for each in Path(f"/proc/{child.pid}/fd").iterdir()]
        assert sum(each.startswith("socket:") for each in opened) == 1
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            child.send_signal(number)
        assert await pool.run(JOB, payload("next")) == "<next>"
        await pool.close()

    run(test())


_PARENT = """
import asyncio
from support.sandbox import JOB, payload, pool_over, processes, warm
from tiercel.sandbox.limits import Limits

async def main():
    async with pool_over(limits=Limits(run_s=60.0)) as pool:
        await warm(pool, 2)
        job = asyncio.ensure_future(pool.run(JOB, payload("spin")))
        await asyncio.sleep(0.1)
        print(*(process.pid for process in processes()), flush=True)
        await job

asyncio.run(main())
"""


def test_children_end_with_their_parent() -> None:
    """Killed without a chance to clean up, while a child spins."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _PARENT]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        started = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
        _, alive = psutil.wait_procs(started, timeout=10)
    assert len(started) == 3
    assert not alive
