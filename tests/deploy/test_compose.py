"""docker-compose.yml and the configurations it mounts."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.tools import tool

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
WAYS = [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.gpu.yml")]


def compose() -> list[str]:
    """Version 2 of Docker's plugin, or version 1."""
    docker = shutil.which("docker")
    if (
        docker
        and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    ):
        return [docker, "compose"]
    return [tool("docker-compose")]


def configured(*files: str) -> dict[str, Any]:
    """The services that `up` starts, with every file's part in them."""
    command = compose()
    for name in files:
        command += ["-f", str(ROOT / name)]
    run = subprocess.run([*command, "config"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    services: dict[str, Any] = yaml.safe_load(run.stdout)["services"]
    return services


def published(service: dict[str, Any]) -> list[str]:
    """Addresses of this machine. Version 1 writes them as text, version 2 does not."""
    return [
        f"{port.get('host_ip', '')}:{port['published']}"
        if isinstance(port, dict)
        else port.rpartition(":")[0]
        for port in service.get("ports", ())
    ]


@pytest.mark.parametrize("files", WAYS)
def test_compose_is_content(files: tuple[str, ...]) -> None:
    services = configured(*files)
    assert set(services) == {"tiercel", "prometheus", "grafana", "otel-collector"}
    assert not any("profiles" in service for service in services.values())  # so all are started
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            assert not source.startswith("/") or Path(source).exists(), (name, source)


@pytest.mark.parametrize("files", WAYS)
def test_no_port_is_published_twice(files: tuple[str, ...]) -> None:
    services = configured(*files)
    addresses = [address for service in services.values() for address in published(service)]
    assert len(addresses) == len(set(addresses))
    assert published(services["tiercel"]) == ["127.0.0.1:8080"]
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_the_gpus_file_changes_the_image_and_adds_a_device() -> None:
    cpu, gpu = (configured(*files)["tiercel"] for files in WAYS)
    assert (cpu["image"], gpu["image"]) == ("tiercel:cpu", "tiercel:cuda")
    assert (cpu["build"].pop("target"), gpu["build"].pop("target")) == ("cpu", "cuda")
    (device,) = gpu.pop("deploy")["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert cpu | {"image": ""} == gpu | {"image": ""}


def test_the_stack_fits_together() -> None:
    services = _yaml(ROOT / "docker-compose.yml")["services"]
    server = services["tiercel"]
    assert server["read_only"] and server["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for each in services.values()
               for port in each.get("ports", ()))  # fmt: skip
    # What the server drains for, and more, before it is killed.
    assert server["stop_grace_period"] == "2m"
    jobs = {
        job["job_name"]: job
        for job in _yaml(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]
    }
    (target,) = jobs["tiercel"]["static_configs"][0]["targets"]
    assert target == f"tiercel:{server['environment']['PORT']}"
    collector = _yaml(DEPLOY / "otel/collector.yaml")
    receivers = collector["receivers"]["otlp"]["protocols"]
    endpoint = server["environment"]["OTLP_ENDPOINT"]
    assert endpoint.rpartition(":")[2] == receivers["grpc"]["endpoint"].rpartition(":")[2]
    host = re.match(r"http://([^:]+):", endpoint)
    assert host and host[1] in services


def test_the_collectors_pipelines_name_what_there_is() -> None:
    collector = _yaml(DEPLOY / "otel/collector.yaml")
    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(collector[kind])
    assert set(collector["service"]["extensions"]) <= set(collector["extensions"])


def test_grafana_finds_source_and_board() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = _yaml(provisioning / "datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = _yaml(provisioning / "dashboards/dashboards.yml")["providers"]
    mounted = _yaml(ROOT / "docker-compose.yml")["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounted


def test_the_board_is_what_its_script_writes() -> None:
    document = runpy.run_path(str(DEPLOY / "grafana/build.py"))["document"]()
    assert json.loads((DEPLOY / "grafana/dashboards/tiercel.json").read_text()) == document
    places = [panel["gridPos"] for panel in document["panels"]]
    cells = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"])
             for y in range(at["y"], at["y"] + at["h"])]  # fmt: skip
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24  # none over another


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())
