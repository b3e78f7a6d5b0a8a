"""The manifests, rendered by kubectl: valid for three versions of Kubernetes, and consistent."""

import json
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from support.tools import tool
from tiercel.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
VERSIONS = ("1.27", "1.31", "1.34")
# Types of operators, whose schemas are not Kubernetes' own.
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
SPARE_S = 20  # between the end of draining and SIGKILL


def render(overlay: str) -> list[dict[str, Any]]:
    run = subprocess.run(
        [tool("kubectl"), "kustomize", str(FOLDER / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return [document for document in yaml.safe_load_all(run.stdout) if document]


@pytest.fixture(scope="module", params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(request.param)


def one(documents: list[dict[str, Any]], kind: str, name: str = "tiercel") -> dict[str, Any]:
    (found,) = [
        each
        for each in documents
        if each["kind"] == kind and each["metadata"]["name"].startswith(name)
        and (name != "tiercel" or "download" not in each["metadata"]["name"])
        and "dashboard" not in each["metadata"]["name"]
    ]  # fmt: skip
    return found


def pods(documents: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            yield document["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
def test_valid(documents: list[dict[str, Any]], version: str) -> None:
    checked = 0
    for document in documents:
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked >= 6


def test_validation_notices(documents: list[dict[str, Any]]) -> None:
    broken = json.loads(json.dumps(one(documents, "Deployment")))
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["tries"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_grace_is_longer_than_stop_and_drain(documents: list[dict[str, Any]]) -> None:
    spec = one(documents, "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    name, sleep_s = container["lifecycle"]["preStop"]["exec"]["command"]
    drain_s = float(_config(documents)["GRACEFUL_TERMINATION_TIMEOUT"])
    assert name == "sleep"
    assert spec["terminationGracePeriodSeconds"] >= int(sleep_s) + drain_s + SPARE_S
    # Unready pods have left the endpoints before the server stops taking requests.
    ready = container["readinessProbe"]
    assert int(sleep_s) >= ready["periodSeconds"] * ready["failureThreshold"]


def test_probes(documents: list[dict[str, Any]]) -> None:
    (container,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    start, ready, live = (
        container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")
    )
    assert start["periodSeconds"] * start["failureThreshold"] >= 1800  # the largest model's load
    assert ready["timeoutSeconds"] < ready["periodSeconds"]
    patience_s = live["periodSeconds"] * live["failureThreshold"]
    # The server gives a silent engine up by itself, well before it is restarted from outside.
    assert patience_s > 2 * Settings.model_fields["heartbeat_timeout"].default
    # A draining server answers 503 to /health, and must not be restarted for it.
    assert start["httpGet"]["path"] == ready["httpGet"]["path"] == "/health"
    assert live["httpGet"]["path"] == "/v2/health/live"


def test_pods_are_locked_in(documents: list[dict[str, Any]]) -> None:
    for spec in pods(documents):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert {mounts["data"], mounts["tmp"]} == {"/data", "/tmp"}
            volumes = {volume["name"]: volume for volume in spec["volumes"]}
            assert set(mounts) == set(volumes)
            assert all(len(volume) == 2 for volume in volumes.values())  # its name and one source


def test_policies_and_disruption(documents: list[dict[str, Any]]) -> None:
    policy = one(documents, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 4317, 4318}
    budget = one(documents, "PodDisruptionBudget")["spec"]
    assert budget["selector"] == one(documents, "Deployment")["spec"]["selector"]


def test_names_are_settings_of_ours(documents: list[dict[str, Any]]) -> None:
    known = {name.upper() for name in Settings.model_fields} | {"HF_HUB_OFFLINE"}
    assert set(_config(documents)) <= known


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name != "cpu"])
def test_cards_and_models(overlay: str) -> None:
    documents = render(overlay)
    config = _config(documents)
    deployment = one(documents, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    cards = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert cards == int(config.get("NUM_SHARD", 1))
    assert container["image"].endswith(":cuda")
    assert config["HF_HUB_OFFLINE"] == "1"  # the job downloads, the server does not
    volumes = {each["name"]: each for each in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "tiercel-models"
    job = one(documents, "Job", "tiercel-download")["spec"]["template"]["spec"]
    reference = job["containers"][0]["env"][0]["valueFrom"]["configMapKeyRef"]
    assert reference["name"] == one(documents, "ConfigMap")["metadata"]["name"]  # with its hash
    assert container["envFrom"][0]["configMapRef"]["name"] == reference["name"]


def test_scaling_goes_by_queue_and_cache() -> None:
    hpa = one(render("a10g-7b"), "HorizontalPodAutoscaler")["spec"]
    names = {each["pods"]["metric"]["name"] for each in hpa["metrics"]}
    assert names == {"tiercel_requests_waiting", "tiercel_kv_cache_usage_ratio"}
    assert hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300
    keda = one(render("tensor-parallel"), "ScaledObject")["spec"]
    queries = " ".join(each["metadata"]["query"] for each in keda["triggers"])
    assert all(name in queries for name in names)


def test_what_is_written_is_up_to_date() -> None:
    for name, make in runpy.run_path(str(FOLDER / "build.py"))["FILES"].items():
        assert (FOLDER / "monitoring" / name).read_text() == make(), "deploy/kubernetes/build.py"


def test_the_rules_are_the_same() -> None:
    rule = one(render("a10g-7b"), "PrometheusRule")
    path = FOLDER.parent / "prometheus" / "rules.yml"
    assert rule["spec"] == yaml.safe_load(path.read_text())


def _config(documents: list[dict[str, Any]]) -> dict[str, str]:
    data: dict[str, str] = one(documents, "ConfigMap")["data"]
    return data
