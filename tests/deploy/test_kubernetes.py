"""The manifests, rendered by kubectl: valid for three versions of Kubernetes, and consistent."""

import json
import runpy
import shutil
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from support.manifests import (
    FOLDER,
    GPU_OVERLAYS,
    OVERLAYS,
    Document,
    config,
    one,
    pods,
    render,
    server,
    start_s,
)
from tiercel.settings import Settings

VERSIONS = ("1.27", "1.31", "1.34")
# Types of operators, whose schemas are not Kubernetes' own.
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
SPARE_S = 20  # between the end of draining and SIGKILL
# Beside the model's load, a new pod needs a node, its image, and the old one's end.
ROLLOUT_SPARE_S = 600
MODELS = [name for name in GPU_OVERLAYS if (FOLDER / "overlays" / name / "model").is_dir()]


@pytest.fixture(scope="module", params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    return render(request.param)


@pytest.mark.parametrize("version", VERSIONS)
def test_valid(documents: list[Document], version: str) -> None:
    checked = 0
    for document in documents:
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked >= 6


def test_validation_notices(documents: list[Document]) -> None:
    broken = json.loads(json.dumps(one(documents, "Deployment")))
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["tries"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_grace_is_longer_than_stop_and_drain(documents: list[Document]) -> None:
    spec = one(documents, "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    name, sleep_s = container["lifecycle"]["preStop"]["exec"]["command"]
    drain_s = float(config(documents)["GRACEFUL_TERMINATION_TIMEOUT"])
    assert name == "sleep"
    assert spec["terminationGracePeriodSeconds"] >= int(sleep_s) + drain_s + SPARE_S
    # Unready pods have left the endpoints before the server stops taking requests.
    ready = container["readinessProbe"]
    assert int(sleep_s) >= ready["periodSeconds"] * ready["failureThreshold"]


def test_probes(documents: list[Document]) -> None:
    container = server(documents)
    start, ready, live = (
        container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")
    )
    assert start_s(container) >= 1800  # the largest model's load
    deployment = one(documents, "Deployment")["spec"]
    grace_s = deployment["template"]["spec"]["terminationGracePeriodSeconds"]
    assert (
        deployment["progressDeadlineSeconds"] >= start_s(container) + grace_s + ROLLOUT_SPARE_S
    )  # a rollout has not failed while its pod may still load
    assert ready["timeoutSeconds"] < ready["periodSeconds"]
    patience_s = live["periodSeconds"] * live["failureThreshold"]
    # The server gives a silent engine up by itself, well before it is restarted from outside.
    assert patience_s > 2 * Settings.model_fields["heartbeat_timeout"].default
    # A draining server answers 503 to /health, and must not be restarted for it.
    assert start["httpGet"]["path"] == ready["httpGet"]["path"] == "/health"
    assert live["httpGet"]["path"] == "/v2/health/live"


def test_pods_are_locked_in(documents: list[Document]) -> None:
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


def test_policies_and_disruption(documents: list[Document]) -> None:
    policy = one(documents, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 4317, 4318}
    budget = one(documents, "PodDisruptionBudget")["spec"]
    deployment = one(documents, "Deployment")["spec"]
    assert budget["selector"] == deployment["selector"]
    # Nodes may take as many pods away as a rollout does, and so all can be drained.
    rollout = deployment["strategy"]["rollingUpdate"]
    assert budget["maxUnavailable"] == 1 >= rollout["maxUnavailable"]


def test_a_rollout_waits_for_no_card_that_is_not_there(documents: list[Document]) -> None:
    spec = one(documents, "Deployment")["spec"]
    rollout = spec["strategy"]["rollingUpdate"]
    card = spec["template"]["spec"].get("nodeSelector", {}).get("nvidia.com/gpu.product", "")
    scarce = "A100" in card
    assert (rollout["maxSurge"], rollout["maxUnavailable"]) == ((0, 1) if scarce else (1, 0))


def test_names_are_settings_of_ours(documents: list[Document]) -> None:
    known = {name.upper() for name in Settings.model_fields} | {"HF_HUB_OFFLINE"}
    assert set(config(documents)) <= known


@pytest.mark.parametrize("overlay", GPU_OVERLAYS)
def test_cards_and_models(overlay: str) -> None:
    documents = render(overlay)
    variables = config(documents)
    deployment = one(documents, "Deployment")
    container = server(documents)
    cards = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert cards == int(variables.get("NUM_SHARD", 1))
    assert container["image"].endswith(":cuda")
    assert variables["HF_HUB_OFFLINE"] == "1"  # the job downloads, the server does not
    volumes = {each["name"]: each for each in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "tiercel-models"
    # The job fetches what the server looks for.
    job = one(documents, "Job", "tiercel-download")["spec"]["template"]["spec"]["containers"][0]
    model = one(documents, "ConfigMap", "tiercel-model")
    references = {each["name"]: each["valueFrom"].get("configMapKeyRef") for each in job["env"]}
    for name in ("MODEL_ID", "REVISION"):
        assert references[name] == {"name": model["metadata"]["name"], "key": name}
        assert f"$({name})" in job["command"]
        assert variables[name] == model["data"][name] != ""


def test_two_to_eight_cards() -> None:
    numbers = {name: int(config(render(name)).get("NUM_SHARD", 1)) for name in GPU_OVERLAYS}
    parallel = {name: cards for name, cards in numbers.items() if name.startswith("tensor")}
    assert sorted(parallel.values()) == [2, 4, 8]
    # Nothing but the number differs, so that any other is as easily had.
    two, four = render("tensor-parallel-2"), render("tensor-parallel")
    different = {name for name, value in config(four).items() if config(two)[name] != value}
    assert different == {"NUM_SHARD"}


@pytest.mark.parametrize("overlay", MODELS)
def test_a_setting_changes_and_the_job_does_not(overlay: str, tmp_path: Path) -> None:
    """A job's template cannot be changed: `kubectl apply` of a new one would fail."""
    before, after = render(overlay), _changed(overlay, tmp_path, "", "MAX_TOTAL_TOKENS=2048",
                                              "MAX_TOTAL_TOKENS=1024")  # fmt: skip
    jobs = [one(documents, "Job", "tiercel-download") for documents in (before, after)]
    assert jobs[0] == jobs[1]
    references = [server(documents)["envFrom"] for documents in (before, after)]
    assert references[0] != references[1]  # while servers are rolled


@pytest.mark.parametrize("overlay", MODELS)
def test_another_model_makes_another_job(overlay: str, tmp_path: Path) -> None:
    before = render(overlay)
    after = _changed(overlay, tmp_path, "model", "REVISION=main", "REVISION=v2")
    jobs = [one(documents, "Job", "tiercel-download")["spec"] for documents in (before, after)]
    assert jobs[0]["template"] != jobs[1]["template"]
    # The old one is gone by then: Kubernetes removes it some minutes after its end.
    assert 60 <= jobs[0]["ttlSecondsAfterFinished"] <= 3600
    references = [server(documents)["envFrom"] for documents in (before, after)]
    assert references[0] != references[1]  # servers are rolled, too


@pytest.mark.parametrize("overlay", MODELS)
def test_the_model_can_be_fetched_before(overlay: str) -> None:
    """Its folder alone has all that the job needs, and the overlay has the same job."""
    alone, documents = render(f"{overlay}/model"), render(overlay)
    assert [each for each in alone if each not in documents] == []
    assert {each["kind"] for each in alone} == {
        "Job", "ConfigMap", "NetworkPolicy", "PersistentVolumeClaim"
    }  # fmt: skip
    pod = one(alone, "Job", "tiercel-download")["spec"]["template"]["spec"]
    assert "serviceAccountName" not in pod  # the server's account may not be there yet


def test_what_is_written_is_up_to_date() -> None:
    for name, make in runpy.run_path(str(FOLDER / "build.py"))["FILES"].items():
        assert (FOLDER / "monitoring" / name).read_text() == make(), "deploy/kubernetes/build.py"


def test_the_rules_are_the_same() -> None:
    rule = one(render("a10g-7b"), "PrometheusRule")
    path = FOLDER.parent / "prometheus" / "rules.yml"
    assert rule["spec"] == yaml.safe_load(path.read_text())


def _changed(overlay: str, folder: Path, under: str, old: str, new: str) -> list[Document]:
    """The overlay with one literal changed."""
    copy = folder / "kubernetes"
    shutil.copytree(FOLDER, copy)
    path = copy / "overlays" / overlay / under / "kustomization.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return render(overlay, copy)
