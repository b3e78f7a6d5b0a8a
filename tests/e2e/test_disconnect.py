"""Clients that vanish, queued, in prefill and mid-stream, on a real server over real sockets."""

from pathlib import Path

import pytest

from support.client import client_of, run
from support.server import make_server
from tiercel.bench.disconnect import Crowd, measure_disconnect
from tiercel.bench.server import ServerProcess

CROWD = Crowd(running=12, prefill=8, queued=12, solo=4, prompt_tokens=900, new_tokens=1_000)


@pytest.mark.slow
def test_nothing_is_computed_for_clients_that_left(tmp_path: Path, slow_model: Path) -> None:
    async def measure(server: ServerProcess) -> None:
        report = await measure_disconnect(client_of(server), "slow", server.log, CROWD)
        missed = [figure for figure in report.figures if figure.passed is False]
        assert not missed, server.log()

    with make_server(tmp_path, slow_model, "--max-batch-size", str(CROWD.rows)) as server:
        run(measure(server))
        exit_code = server.stop()
    assert exit_code == 0
