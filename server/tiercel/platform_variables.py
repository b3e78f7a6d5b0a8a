"""What a hosting platform says through its own environment variables, in the names of Settings.

SageMaker, Vertex AI and OpenTelemetry. Pure: the environment comes as an argument. These values are
the weakest of all; a flag, a variable of TGI's name and the file of --config-file each win.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

ANY_ADDRESS = "0.0.0.0"  # noqa: S104 (a container is reached from outside)
SAGEMAKER_PORT = 8080
SAGEMAKER_MODEL = Path("/opt/ml/model")
# Set by the platform itself, or by its SDK for model containers. A notebook has none of them.
SAGEMAKER_SIGNS = (
    "HF_MODEL_ID",
    "SM_NUM_GPUS",
    "SAGEMAKER_BIND_TO_PORT",
    "SAGEMAKER_CONTAINER_LOG_LEVEL",
    "SAGEMAKER_REGION",
)
_SAGEMAKER_NAMES = {
    "HF_MODEL_ID": "model_id",
    "HF_MODEL_REVISION": "revision",
    "HF_MODEL_QUANTIZE": "quantize",
    "HF_MODEL_TRUST_REMOTE_CODE": "trust_remote_code",
    "SAGEMAKER_BIND_TO_PORT": "port",
}
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_TRACES_PATH = "/v1/traces"
# The first that is set counts.
_OTEL_NAMES = {
    "otlp_endpoint": (TRACES_ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    "otlp_protocol": ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    "otlp_service_name": ("OTEL_SERVICE_NAME",),
}


def platform_values(
    environment: Mapping[str, str], sagemaker_model: Path = SAGEMAKER_MODEL
) -> dict[str, Any]:
    """Settings by name. Empty where no platform has said anything."""
    said = {name: value for name, value in environment.items() if value}
    values = _opentelemetry(said)
    if any(name in said for name in SAGEMAKER_SIGNS):
        values |= _sagemaker(said, sagemaker_model)
    if "AIP_HTTP_PORT" in said:
        values |= {"hostname": ANY_ADDRESS, "port": said["AIP_HTTP_PORT"]}
    return values


def _sagemaker(said: Mapping[str, str], folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = {"hostname": ANY_ADDRESS, "port": SAGEMAKER_PORT}
    if (folder / "config.json").is_file():
        values["model_id"] = str(folder)
    values |= {ours: said[theirs] for theirs, ours in _SAGEMAKER_NAMES.items() if theirs in said}
    return values


def _opentelemetry(said: Mapping[str, str]) -> dict[str, Any]:
    if said.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return {}
    if said.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return {}
    values = {}
    for ours, theirs in _OTEL_NAMES.items():
        first = next((said[name] for name in theirs if name in said), None)
        if first is not None:
            values[ours] = first
    return values


def traces_url(endpoint: str | None, protocol: str, environment: Mapping[str, str]) -> str | None:
    """Where the exporter sends spans to, if anywhere.

    As OpenTelemetry has it, over HTTP an endpoint is the root of all signals, and that of
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is the address itself, whatever its path.
    """
    if endpoint is None or protocol == "grpc" or endpoint == environment.get(TRACES_ENDPOINT):
        return endpoint
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/")
    if not path.endswith(_TRACES_PATH):
        path += _TRACES_PATH
    return urlunsplit(parts._replace(path=path))
