"""Flags, environment and file: precedence, and errors that name what to change."""

from pathlib import Path

import msgspec
import pytest

from tiercel.api.options import EdgeOptions
from tiercel.errors import ConfigError
from tiercel.plan.sizes import QUANTIZATIONS
from tiercel.quantization.method import METHODS
from tiercel.settings import load_settings
from tiercel.wire.messages import EngineReady

READY = EngineReady(
    model_type="falcon", dtype="float32", device="cpu", vocab_size=512, max_total_tokens=128,
    max_input_tokens=64, max_batch_prefill_tokens=64, max_batch_total_tokens=1_024,
    max_batch_size=16, block_tokens=16, total_blocks=64, load_s=0.0, warmup_s=0.0, weights_bytes=0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_inherited_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "HOSTNAME", "MODEL_ID", "MAX_INPUT_TOKENS", "CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_flag_beats_environment_beats_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "tiercel.toml"
    file.write_text("port = 1\nmax_best_of = 7\nmax_total_tokens = 512\n")
    monkeypatch.setenv("PORT", "2")
    monkeypatch.setenv("MAX_BEST_OF", "8")
    settings = load_settings(config_file=file, port=3)
    assert (settings.port, settings.max_best_of, settings.max_total_tokens) == (3, 8, 512)


def test_a_host_name_in_hostname_is_not_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "3f2c9a1b7d00")
    assert load_settings().hostname == "127.0.0.1"
    monkeypatch.setenv("HOSTNAME", "0.0.0.0")
    assert load_settings().hostname == "0.0.0.0"


def test_the_contracts_defaults_reach_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract 1.3, 2 and 5: what clients count on where nobody has set anything."""
    contract = {
        "keep_alive_s": 15.0,
        "max_concurrent_requests": 128,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_top_n_tokens": 5,
        "max_client_batch_size": 4,
        "payload_limit": 2_000_000,
    }
    for name in contract:
        monkeypatch.delenv(name.removesuffix("_s").upper(), raising=False)
    found = load_settings().edge_options("m", READY)
    for options in (found, EdgeOptions("m")):
        assert {name: getattr(options, name) for name in contract} == contract


def test_the_compute_type_is_shards_and_card() -> None:
    """Contract 1.4: `<shards>-<gpu name>`, unless it is given."""
    assert load_settings().edge_options("m", READY).compute_type == "1-cpu"
    cards = msgspec.structs.replace(READY, ranks=2, device_name="nvidia-a10g")
    assert load_settings().edge_options("m", cards).compute_type == "2-nvidia-a10g"
    given = load_settings(compute_type="gpu+optimized").edge_options("m", cards)
    assert given.compute_type == "gpu+optimized"


def test_settings_are_frozen() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 5


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ({"max_total_tokens": 1}, "--max-total-tokens: input should be greater than or equal to 2"),
        ({"port": 70000}, "--port: input should be less than or equal to 65535 (given: 70000)"),
        ({"dtype": "int3"}, "--dtype: input should be 'float32'"),
        ({"max_batch_size": -1}, "--max-batch-size: input should be greater than 0"),
        ({"max_input_tokens": 5, "max_input_length": 6}, "not both"),
        ({"config_file": "/absent.toml"}, "--config-file /absent.toml is not a file"),
        ({"tokenizer_config_path": "/absent.json"}, "--tokenizer-config-path /absent.json is not"),
        ({"watermark_gamma": 1.0}, "--watermark-gamma"),
        ({"graceful_termination_timeout": 0}, "--graceful-termination-timeout"),
    ],
)
def test_errors_name_the_flag_and_the_limit(flags: dict[str, object], fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(**flags)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("port = = 3")
    with pytest.raises(ConfigError, match="--config-file"):
        load_settings(config_file=file)


def test_secrets_do_not_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in load_settings().child_environment().values()


def test_quantization_reaches_the_engine_under_one_list_of_names(tmp_path: Path) -> None:
    assert set(QUANTIZATIONS) == set(METHODS)
    for name in QUANTIZATIONS:
        assert load_settings(quantize=name).engine_options(tmp_path).quantize == name
    four = load_settings(quantize="bitsandbytes-nf4", double_quant=True)
    assert four.engine_options(tmp_path).double_quant
    with pytest.raises(ConfigError, match="--double-quant needs --quantize bitsandbytes-nf4"):
        load_settings(quantize="bitsandbytes", double_quant=True)
    with pytest.raises(ConfigError, match="--quantize: this version has bitsandbytes"):
        load_settings(quantize="gptq")
