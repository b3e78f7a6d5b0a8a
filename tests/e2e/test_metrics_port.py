"""`--prometheus-port`, and what only a whole server can put into its metrics."""

import re
import socket
from pathlib import Path

import httpx
import psutil

from support.server import engine_of, make_server, startup_errors
from tiercel.bench.server import free_port


def samples(text: str) -> dict[str, float]:
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def test_a_port_for_metrics_alone(tmp_path: Path) -> None:
    port = free_port()
    keys = tmp_path / "keys"
    keys.write_text("plain:dataKey\nboss:adminKey:admin\n")
    flags = ("--prometheus-port", str(port), "--api-keys-file", str(keys), "--protect-metrics")
    with make_server(tmp_path, None, *flags) as server:
        other = f"http://{server.host}:{port}"
        admin = {"authorization": "Bearer adminKey"}
        assert httpx.get(f"{other}/metrics").status_code == 401
        assert httpx.get(f"{other}/metrics", headers=admin).status_code == 200
        for path in ("/health", "/generate", "/info", "/"):
            assert httpx.get(f"{other}{path}", headers=admin).status_code == 404
        main = samples(httpx.get(f"{server.url}/metrics", headers=admin).text)
        found = samples(httpx.get(f"{other}/metrics", headers=admin).text)
        assert set(found) == set(main)
        assert (
            found['tiercel_requests_rejected_total{reason="unauthorized"}'] == 0
        )  # of the main one
        server.stop()
    with socket.socket() as again:  # it is free again
        again.bind((server.host, port))


def test_a_busy_port_ends_the_start(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        server = make_server(tmp_path, None, "--prometheus-port", str(port))
        server.start()
        assert server.wait(60) == 2
    (line,) = startup_errors(server.log())
    assert f":{port} " in line and "--prometheus-port" in line


def test_the_server_about_itself(tmp_path: Path) -> None:
    with make_server(tmp_path, None, "--max-concurrent-requests", "7") as server:
        page = server.get("/metrics")[1]
        found = samples(page)
        engine_bytes = engine_of(server).memory_info().rss
        created_s = psutil.Process(server.pid).create_time()
    assert found["tiercel_engine_up"] == 1 and found["tiercel_draining"] == 0
    assert 0 <= found["tiercel_engine_heartbeat_age_seconds"] < 5
    assert found["tiercel_engine_step_running_seconds"] == 0
    phases = re.findall(r'^tiercel_startup_phase_seconds{phase="(\w+)"} (\S+)$', page, re.M)
    seconds = {name: float(value) for name, value in phases}
    assert set(seconds) == {"resolve", "tokenizer", "engine", "load", "warmup", "total"}
    parts_s = sum(seconds[name] for name in ("resolve", "tokenizer", "engine"))
    assert seconds["load"] + seconds["warmup"] < seconds["engine"] < seconds["total"]
    assert parts_s <= seconds["total"] < parts_s + 5
    kinds = {kind: found[f'tiercel_memory_bytes{{kind="{kind}"}}']
             for kind in ("weights", "kv_cache", "api_resident", "engine_resident")}  # fmt: skip
    assert kinds["weights"] > 4e6 and kinds["kv_cache"] > 1e6
    assert abs(kinds["engine_resident"] - engine_bytes) < 0.2 * engine_bytes
    assert kinds["api_resident"] > 2e7
    assert found["tiercel_ranks"] == 1
    for kind in ("weights", "kv_cache"):
        assert found[f'tiercel_rank_memory_bytes{{rank="0",kind="{kind}"}}'] == kinds[kind]
    assert 0 <= found['tiercel_rank_heartbeat_age_seconds{rank="0"}'] < 5
    assert abs(found["tiercel_start_time_seconds"] - created_s) < 1
    assert re.search(
        r'^tiercel_config_info{model="tiercel/eyas",.*max_concurrent_requests="7"} 1$', page, re.M
    )
    assert re.search(
        r'^tiercel_build_info{version="[^"]+",python="3\.\d+\.\d+",torch="2[^"]+"} 1$', page, re.M
    )
    assert re.search(r'^tiercel_kv_cache_info{block_tokens="16",blocks="\d+"} 1$', page, re.M)
