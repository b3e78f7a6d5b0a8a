"""The Kubernetes manifests as kubectl renders them, and parts of them."""

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from support.tools import tool
from tiercel.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
GPU_OVERLAYS = [name for name in OVERLAYS if name != "cpu"]

Document = dict[str, Any]


def render(overlay: str, folder: Path = FOLDER) -> list[Document]:
    """The documents of an overlay, or of a folder in one."""
    text = _rendered(folder / "overlays" / overlay)
    return [document for document in yaml.safe_load_all(text) if document]


@functools.cache
def _rendered(path: Path) -> str:
    command = [tool("kubectl"), "kustomize", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


def one(documents: list[Document], kind: str, name: str = "tiercel") -> Document:
    """The only one of a kind by this name, or by this name and a hash."""
    (found,) = [
        each
        for each in documents
        if each["kind"] == kind and _plain(each["metadata"]["name"], kind) == name
    ]
    return found


def pods(documents: list[Document]) -> Iterator[Document]:
    """What every pod is made from."""
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            yield document["spec"]["template"]["spec"]


def server(documents: list[Document]) -> Document:
    """The server's container."""
    (container,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def config(documents: list[Document]) -> dict[str, str]:
    """The variables that the server gets from its ConfigMaps."""
    maps = {each["metadata"]["name"]: each["data"] for each in documents
            if each["kind"] == "ConfigMap"}  # fmt: skip
    found: dict[str, str] = {}
    for source in server(documents)["envFrom"]:
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]
    return found


def limits(variables: dict[str, str]) -> tuple[int, int]:
    """Rows, and the requests that may be in the server at once."""
    default = Settings.model_fields["max_concurrent_requests"].default
    requests = int(variables.get("MAX_CONCURRENT_REQUESTS", default))
    return int(variables.get("MAX_BATCH_SIZE", requests)), requests


def start_s(container: Document) -> int:
    """How long the startup probe waits."""
    probe = container["startupProbe"]
    return int(probe["periodSeconds"] * probe["failureThreshold"])


def _plain(name: str, kind: str) -> str:
    """Without the hash that kustomize appends to a generated ConfigMap's name."""
    hashed = kind == "ConfigMap" and len(name.rpartition("-")[2]) == 10
    return name.rpartition("-")[0] if hashed else name
