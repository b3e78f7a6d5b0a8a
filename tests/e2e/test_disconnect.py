"""Clients that vanish, queued, in prefill and mid-stream, on a real server over real sockets."""

from pathlib import Path

import pytest

from support.client import client_of, run
from support.server import make_server
from tiercel.bench.disconnect import (
    LATE_STEPS,
    Crowd,
    drop_in_prefill_alone,
    error_lines,
    measure_disconnect,
)
from tiercel.bench.prompts import PromptMaker
from tiercel.bench.report import Report
from tiercel.bench.server import ServerProcess

CHUNK_TOKENS = 48
CROWD = Crowd(
    running=10, prefill=6, queued=10, solo=4, solo_prefill=0, prompt_tokens=600, new_tokens=1_000
)
ALONE = Crowd(solo_prefill=3, prompt_tokens=600)


@pytest.mark.slow
def test_nothing_is_computed_for_clients_that_left(tmp_path: Path, slow_model: Path) -> None:
    async def measure(server: ServerProcess) -> Report:
        return await measure_disconnect(client_of(server), "slow", server.log, CROWD)

    with make_server(tmp_path, slow_model, "--max-batch-size", str(CROWD.rows)) as server:
        report = run(measure(server), 100.0)
        assert report.passed, f"{report.to_json()}\n{server.log()}"
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(300)  # a machine with much else to do takes long to make and load the model
def test_a_prefill_that_nobody_waits_for_ends_with_its_step(
    tmp_path: Path, slow_model: Path
) -> None:
    async def drops(server: ServerProcess) -> tuple[int, list[int]]:
        client = client_of(server)
        maker = await PromptMaker.for_server(client, seed=5)
        return await drop_in_prefill_alone(client, maker, ALONE)

    flags = ("--max-batch-prefill-tokens", str(CHUNK_TOKENS))
    with make_server(tmp_path, slow_model, *flags) as server:
        whole, excess = run(drops(server), 100.0)
        print(f"\n{whole} steps for a prompt; after drops {excess}")
        # Else the steps after a drop would be few even where nobody noticed it.
        assert whole >= ALONE.prompt_tokens // CHUNK_TOKENS
        assert len(excess) >= ALONE.solo_prefill / 2
        assert max(excess) <= LATE_STEPS
        assert not error_lines(server.log())
        assert server.stop() == 0
