"""Clients that vanish, queued, in prefill and mid-stream, on a real server over real sockets."""

from pathlib import Path

import pytest

from support.client import client_of, run
from support.server import make_server
from tiercel.bench.disconnect import Crowd, measure_disconnect
from tiercel.bench.report import Report
from tiercel.bench.server import ServerProcess

CROWD = Crowd(running=10, prefill=6, queued=10, solo=4, prompt_tokens=600, new_tokens=1_000)


@pytest.mark.slow
def test_nothing_is_computed_for_clients_that_left(tmp_path: Path, slow_model: Path) -> None:
    async def measure(server: ServerProcess) -> Report:
        return await measure_disconnect(client_of(server), "slow", server.log, CROWD)

    with make_server(tmp_path, slow_model, "--max-batch-size", str(CROWD.rows)) as server:
        report = run(measure(server), 100.0)
        assert report.passed, f"{report.to_json()}\n{server.log()}"
        assert server.stop() == 0
