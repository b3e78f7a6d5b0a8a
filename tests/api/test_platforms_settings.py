"""What platforms and TGI's deployments say by flags and variables, and which of them wins."""

import os
from pathlib import Path

import pytest

from tiercel.errors import ConfigError
from tiercel.launcher import LauncherSettings
from tiercel.platform_variables import SAGEMAKER_MODEL, platform_values
from tiercel.settings import Settings, load_settings
from tiercel.settings_text import plain_level


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OTEL_", "AIP_", "SAGEMAKER_", "HF_MODEL")):
            monkeypatch.delenv(name)
    for name in (*Settings.model_fields, "env_name"):
        monkeypatch.delenv(name.upper(), raising=False)


def under(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], **flags: object) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings(**flags)


def test_sagemaker(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "HF_MODEL_ID": "tiiuae/falcon-7b",
        "HF_MODEL_REVISION": "abc",
        "HF_MODEL_TRUST_REMOTE_CODE": "true",
        "SM_NUM_GPUS": "1",
        "MAX_TOTAL_TOKENS": "512",
    }
    settings = under(monkeypatch, variables)
    assert (settings.hostname, settings.port) == ("0.0.0.0", 8080)
    assert (settings.model_id, settings.revision) == ("tiiuae/falcon-7b", "abc")
    assert settings.max_total_tokens == 512


def test_names_of_tgi_and_flags_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "tiercel.toml"
    file.write_text('revision = "file"\n')
    variables = {
        "HF_MODEL_ID": "theirs",
        "MODEL_ID": "ours",
        "HF_MODEL_REVISION": "theirs",
        "SAGEMAKER_BIND_TO_PORT": "8081",
        "HOSTNAME": "127.0.0.1",
    }
    settings = under(monkeypatch, variables, config_file=file)
    assert (settings.model_id, settings.revision) == ("ours", "file")
    assert (settings.hostname, settings.port) == ("127.0.0.1", 8081)
    assert load_settings(model_id="flag", port=7).port == 7


def test_a_model_that_sagemaker_brings(tmp_path: Path) -> None:
    signs = {"SAGEMAKER_REGION": "eu-west-1"}
    assert "model_id" not in platform_values(signs, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert platform_values(signs, tmp_path)["model_id"] == str(tmp_path)
    named = platform_values({**signs, "HF_MODEL_ID": "tiiuae/falcon-7b"}, tmp_path)
    assert named["model_id"] == "tiiuae/falcon-7b"
    assert platform_values({}, tmp_path) == {}
    assert Path("/opt/ml/model") == SAGEMAKER_MODEL


@pytest.mark.parametrize(
    ("variables", "flags", "fragment"),
    [
        ({"HF_MODEL_QUANTIZE": "awq", "SM_NUM_GPUS": "1"}, {}, "--quantize: this version has"),
        ({"AIP_PREDICT_ROUTE": "predict"}, {}, "--aip-predict-route"),
        ({"AIP_HEALTH_ROUTE": "/a b"}, {}, "--aip-health-route"),
        ({"AIP_HTTP_PORT": "http"}, {}, "--port"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "host"}, {}, "--otlp-endpoint"),
        ({}, {"num_shard": 0}, "--num-shard"),
        ({}, {"sharded": "maybe"}, "--sharded"),
        ({}, {"speculate": 2}, "--speculate"),
        ({}, {"kv_cache_dtype": "fp8_e5m2"}, "--kv-cache-dtype"),
        ({}, {"lora_adapters": "a/b"}, "--lora-adapters"),
        ({}, {"cuda_graphs": "many"}, "--cuda-graphs"),
        ({"NUM_SHARD": "many"}, {}, "--num-shard"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    flags: dict[str, object],
    fragment: str,
) -> None:
    with pytest.raises(ConfigError) as caught:
        under(monkeypatch, variables, **flags)
    assert fragment in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("flags", "ranks"),
    [
        ({}, 4),
        ({"device": "cpu"}, 1),
        ({"num_shard": 2}, 2),
        ({"sharded": "false"}, 1),
        ({"sharded": "true"}, 0),
    ],
)
def test_the_gpus_of_sagemaker(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, object], ranks: int
) -> None:
    settings = under(monkeypatch, {"SM_NUM_GPUS": "4"}, **flags)
    assert settings.engine_options(Path("model")).num_shard == ranks


def test_vertex(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "AIP_HTTP_PORT": "8085",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict",
    }
    settings = under(monkeypatch, variables)
    assert (settings.hostname, settings.port) == ("0.0.0.0", 8085)
    assert settings.aip_health_route == variables["AIP_HEALTH_ROUTE"]
    assert settings.aip_predict_route == variables["AIP_PREDICT_ROUTE"]


def test_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "falcon",
    }
    settings = under(monkeypatch, variables)
    assert settings.otlp_endpoint == "http://collector:4318"
    assert (settings.otlp_protocol, settings.otlp_service_name) == ("http/protobuf", "falcon")
    assert load_settings(otlp_endpoint="http://other:1").otlp_endpoint == "http://other:1"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4318")
    assert load_settings().otlp_endpoint == "http://traces:4318"
    for name, value in (("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "true")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert load_settings().otlp_endpoint is None
    assert load_settings().otlp_service_name == "falcon"
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    assert load_settings().otlp_service_name is None  # then the SDK looks further


@pytest.mark.parametrize(
    ("variables", "flags", "url"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c/otlp/"}, {}, "http://c/otlp/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c/?k=1"}, {}, "http://c/v1/traces?k=1"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, {}, "http://c:4318"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/mine"}, {}, "http://c/mine"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/mine"}, {"otlp_endpoint": "http://d"},
         "http://d/v1/traces"),
        ({}, {"otlp_endpoint": "http://d/v1/traces/"}, "http://d/v1/traces"),
        ({}, {}, None),
    ],
)  # fmt: skip
def test_where_traces_go_over_http(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    flags: dict[str, object],
    url: str | None,
) -> None:
    """OpenTelemetry's rule: a root gets `/v1/traces`, an address of traces is used as it is."""
    settings = under(monkeypatch, variables, otlp_protocol="http/protobuf", **flags)
    assert settings.traces_endpoint == url
    plain = load_settings(otlp_protocol="grpc", **flags)
    assert plain.traces_endpoint == plain.otlp_endpoint


def test_the_launchers_address_is_tgis(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().hostname == "127.0.0.1"
    assert load_settings(LauncherSettings).hostname == "0.0.0.0"
    monkeypatch.setenv("HOSTNAME", "3f2c9a1b7d00")  # Docker's
    assert load_settings(LauncherSettings).hostname == "0.0.0.0"
    assert load_settings(LauncherSettings, hostname="::1").hostname == "::1"


def test_flags_without_effect_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().ignored() == []
    settings = load_settings(
        disable_custom_kernels=True, ngrok_authtoken="secret", usage_stats="off"
    )
    assert set(settings.ignored()) == {
        "--disable-custom-kernels", "--ngrok-authtoken",
    }  # fmt: skip
    monkeypatch.setenv("NGROK", "true")
    assert load_settings().ignored() == ["--ngrok"]


def test_a_stage_named_env_is_no_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENV", "production")
    assert load_settings().env is False


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("info,text_generation_router=debug", "info"),
        ("text_generation_router=debug", "info"),
        ("WARN", "warn"),
        ("trace", "debug"),
        ("off", "error"),
    ],
)
def test_log_filters_of_tracing(text: str, level: str) -> None:
    assert plain_level(text) == level
    assert load_settings(log_level=text).log_level == level


def test_a_log_level_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="--log-level"):
        load_settings(log_level="loud")


@pytest.mark.parametrize(
    ("given", "graphs", "sizes"),
    [(None, True, None), ("0", False, (0,)), ("1,2,8", True, (1, 2, 8))],
)
def test_sizes_of_cuda_graphs_reach_the_engine(
    given: str | None, graphs: bool, sizes: tuple[int, ...] | None
) -> None:
    options = Settings(cuda_graphs=given).engine_options(Path("model"))
    assert (options.cuda_graphs, options.cuda_graph_sizes) == (graphs, sizes)
