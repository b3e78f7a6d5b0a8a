"""The two processes and the machine around them: folders, signals, pauses, ports, early deaths."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from support.client import client_of, generate, ids, open_stream, run
from support.server import ENGINE_MODULE, engine_of, make_server, startup_errors
from tiercel.bench.server import ServerProcess

pytestmark = pytest.mark.slow


def test_what_lies_in_the_current_folder_is_not_imported(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A downloaded model's folder is a place to stand in, not a source of code."""
    canary = tmp_path / "ran"
    trap = tmp_path / "here"
    trap.mkdir()
    for name in ("zmq", "torch", "msgspec", "queue", "tiercel_canary"):
        (trap / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    monkeypatch.chdir(trap)
    server = make_server(tmp_path, tiny_model)
    server.command[1:3] = ["-P", "-m", "tiercel.cli"]  # as the installed script runs it
    with server:
        assert run(generate(client_of(server), "Story", max_new_tokens=2))
    assert not canary.exists()


def test_sigterm_to_every_process_still_drains(tmp_path: Path, slow_model: Path) -> None:
    """As systemd does it: the engine must leave the signal to its parent."""

    async def signal_all(server: ServerProcess) -> int:
        exchange = await open_stream(client_of(server), "Story", max_new_tokens=40)
        assert await exchange.tokens(2) >= 2
        for process in server.processes():
            process.send_signal(signal.SIGTERM)
        return len(ids(await exchange.reply()))

    with make_server(tmp_path, slow_model) as server:
        assert run(signal_all(server)) == 40
        assert server.wait(10.0) == 0


def test_a_server_that_was_paused_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    with make_server(tmp_path, tiny_model, "--heartbeat-timeout", "3") as server:
        server.send(signal.SIGSTOP)
        time.sleep(5.0)
        server.send(signal.SIGCONT)
        time.sleep(1.0)
        assert server.health() == 200
        assert run(generate(client_of(server), "Story", max_new_tokens=2))
        assert server.stop() == 0


def test_an_engine_ends_with_a_server_killed_while_it_starts(
    tmp_path: Path, tiny_model: Path
) -> None:
    server = make_server(tmp_path, tiny_model)
    server.start()
    try:
        deadline = time.monotonic() + 30
        while not (engines := _engines(server)) and time.monotonic() < deadline:
            time.sleep(0.01)
        server.send(signal.SIGKILL)
        server.wait(5.0)
        gone, alive = psutil.wait_procs(engines, timeout=15.0)
        assert gone
        assert not alive
    finally:
        server.clean_up()


def _engines(server: ServerProcess) -> list[psutil.Process]:
    return [each for each in server.processes() if ENGINE_MODULE in each.cmdline()]


def test_two_servers_on_one_port(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "second").mkdir()
    with make_server(tmp_path, tiny_model) as first:
        second = make_server(tmp_path / "second", tiny_model)
        second.command[second.command.index("--port") + 1] = str(first.port)
        second.start()
        try:
            assert second.wait(30.0) == 2
            (line,) = startup_errors(second.log())
            assert f"cannot listen on 127.0.0.1:{first.port}" in line
            assert "--port" in line
        finally:
            second.clean_up()
        assert first.health() == 200


def test_the_engine_leaves_no_files(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    with make_server(tmp_path, tiny_model, variables={"TMPDIR": str(folder)}) as server:
        assert engine_of(server).is_running()
        assert not list(folder.glob("tiercel-*"))
        server.send(signal.SIGKILL)
        server.wait(5.0)
    assert not list(folder.glob("tiercel-*"))


def test_sigterm_while_loading_ends_it(tmp_path: Path, tiny_model: Path) -> None:
    server = make_server(tmp_path, tiny_model)
    server.start()
    try:
        while not _engines(server):
            time.sleep(0.01)
        server.send(signal.SIGTERM)
        assert server.wait(15.0) == 0
        assert not server.survivors()
    finally:
        server.clean_up()
