"""Flags, environment and file become one frozen tree. The only reader of the environment.

Names are TGI's: the variable of `--max-input-tokens` is MAX_INPUT_TOKENS. A flag beats the
environment, which beats the file of `--config-file` (TOML). Each component gets its own slice.
"""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from tiercel.api.options import EdgeOptions
from tiercel.errors import ConfigError
from tiercel.wire.messages import EngineReady
from tiercel.wire.options import EngineOptions

Positive = Annotated[int, Field(gt=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseSettings):
    """Every setting of the server, its default and its help text, once."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_ignore_empty=True, protected_namespaces=()
    )

    # The model
    model_id: str | None = Field(
        None, description="Hub name or local folder of a Falcon; the embedded eyas when not given."
    )
    revision: str | None = Field(None, description="Commit, tag or branch on the hub.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Arithmetic and weights; the checkpoint's when not given."
    )
    rope_scaling: Literal["linear", "dynamic"] | None = Field(
        None, description="Instead of the configuration's; factor 1 unless --rope-factor is given."
    )
    rope_factor: float | None = Field(
        None, gt=0, le=1024, description="Context extension factor; linear unless --rope-scaling."
    )
    huggingface_hub_cache: str | None = Field(None, description="Folder of downloaded models.")
    trust_remote_code: bool = Field(
        False, description="Accepted and without effect: code of a model is never run."
    )

    # Limits
    max_concurrent_requests: Positive = Field(
        128, description="Requests in the server at once; one more is answered 429."
    )
    max_best_of: Positive = Field(2, description="Most sequences per request.")
    max_stop_sequences: int = Field(4, ge=0, le=1024, description="Most stop strings per request.")
    max_top_n_tokens: int = Field(5, ge=0, le=1024, description="Most alternatives per token.")
    max_client_batch_size: Positive = Field(4, description="Most prompts per /v1/completions call.")
    max_input_tokens: Positive | None = Field(
        None, description="Longest prompt after truncation; one less than --max-total-tokens."
    )
    max_input_length: Positive | None = Field(
        None, description="The old name of --max-input-tokens; give one of them."
    )
    max_total_tokens: Positive | None = Field(
        None, description="Prompt and new tokens of one request; the model's context length."
    )
    payload_limit: Positive = Field(2_000_000, description="Bytes of one request body.")
    validation_workers: Positive = Field(2, description="Threads that tokenize.")

    # Batching
    max_batch_prefill_tokens: Positive | None = Field(
        None, description="Most prompt tokens of one step, and so the largest chunk (4096)."
    )
    max_batch_total_tokens: Positive | None = Field(
        None, description="Tokens the KV cache holds; follows from free memory when not given."
    )
    max_batch_size: Positive | None = Field(
        None, description="Sequences that run at once; --max-concurrent-requests when not given."
    )
    waiting_served_ratio: float = Field(
        0.3, ge=0, description="No longer needed: new requests join every step."
    )
    max_waiting_tokens: int = Field(
        20, ge=0, description="No longer needed: new requests join every step."
    )
    # With a 146M model and a prompt of 1,500 tokens among 8 streams, 4.5 gives a largest gap of 5.1
    # median gaps and a first token 1.44 times later than alone (20 rounds); 4.8 gives 5.5 and 1.41.
    step_stretch: float = Field(
        4.5, ge=0, le=1000,
        description="How many decode steps long a step with prompt chunks may be; 0 is no limit.",
    )  # fmt: skip
    prefix_caching: bool = Field(True, description="Reuse the KV cache of equal beginnings.")

    # Features
    enable_prefill_logprobs: bool = Field(
        False, description="Fill `prefill` for requests with decoder_input_details."
    )
    watermark_gamma: float = Field(0.5, gt=0, lt=1, description="Share of favoured tokens.")
    watermark_delta: float = Field(2.0, ge=0, le=100, description="Bonus of favoured tokens.")

    # Machine
    device: Literal["auto", "cpu"] = Field("auto", description="Where the model runs.")
    threads: Positive | None = Field(None, description="Compute threads; all cores by default.")
    cuda_memory_fraction: float = Field(
        1.0, gt=0, le=1, description="Share of the free memory that weights and cache may take."
    )

    # Server
    hostname: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(3000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    cors_allow_origin: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origin that browsers may call from; repeatable; any when not given."
    )
    graceful_termination_timeout: Seconds = Field(
        90.0, description="Seconds that running requests get after SIGTERM."
    )
    heartbeat_timeout: float = Field(
        10.0,
        ge=3,
        le=86_400,
        description="Seconds without a sign of life after which the engine is given up.",
    )
    step_timeout: Seconds = Field(
        600.0, description="Seconds after which one step counts as stuck."
    )
    keep_alive: Seconds = Field(15.0, description="Seconds between comments on a silent stream.")
    json_output: bool = Field(False, description="Logs as one JSON object per line.")
    log_level: Literal["debug", "info", "warn", "warning", "error"] = Field(
        "info", description="The least important messages to show."
    )
    usage_stats: str = Field("off", description="Accepted and without effect: nothing is sent.")
    compute_type: str | None = Field(None, description="Value of the x-compute-type header.")
    config_file: Path | None = Field(None, description="TOML file with settings by these names.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then environment, then the file."""
        environment = _Environment(settings_cls)
        path = init_settings().get("config_file") or os.environ.get("CONFIG_FILE")
        if path is None:
            return init_settings, environment
        return init_settings, environment, TomlConfigSettingsSource(settings_cls, Path(path))

    @model_validator(mode="before")
    @classmethod
    def _forgiving_values(cls, data: dict[str, Any]) -> dict[str, Any]:
        origins = data.get("cors_allow_origin")
        if isinstance(origins, str):
            data["cors_allow_origin"] = tuple(part.strip() for part in origins.split(","))
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.max_input_tokens is not None and self.max_input_length is not None:
            raise ValueError("give --max-input-tokens or --max-input-length, not both")
        longest = self.max_input_tokens or self.max_input_length
        total = self.max_total_tokens
        if longest is not None and total is not None and longest >= total:
            raise ValueError(
                f"--max-input-tokens {longest} must be less than --max-total-tokens {total}: "
                "at least one new token has to fit"
            )
        if self.config_file is not None and not self.config_file.is_file():
            raise ValueError(f"--config-file {self.config_file} is not a file")
        return self

    def engine_options(self, model_path: Path) -> EngineOptions:
        """The engine's slice."""
        return EngineOptions(
            model_path=str(model_path),
            dtype=self.dtype,
            device=self.device,
            max_input_tokens=self.max_input_tokens or self.max_input_length,
            max_total_tokens=self.max_total_tokens,
            max_batch_prefill_tokens=self.max_batch_prefill_tokens,
            max_batch_total_tokens=self.max_batch_total_tokens,
            max_batch_size=self.max_batch_size,
            max_concurrent_requests=self.max_concurrent_requests,
            prefix_caching=self.prefix_caching,
            step_stretch=self.step_stretch,
            watermark_gamma=self.watermark_gamma,
            watermark_delta=self.watermark_delta,
            memory_fraction=self.cuda_memory_fraction,
            rope_scaling=self.rope_scaling,
            rope_factor=self.rope_factor,
            threads=self.threads,
            log_level=self.log_level,
            log_json=self.json_output,
        )

    def edge_options(self, name: str, ready: EngineReady) -> EdgeOptions:
        """The HTTP edge's slice, with the limits the engine found."""
        return EdgeOptions(
            model_id=name,
            max_concurrent_requests=self.max_concurrent_requests,
            max_best_of=self.max_best_of,
            max_stop_sequences=self.max_stop_sequences,
            max_top_n_tokens=self.max_top_n_tokens,
            max_client_batch_size=self.max_client_batch_size,
            max_input_tokens=ready.max_input_tokens,
            max_total_tokens=ready.max_total_tokens,
            max_batch_size=self.max_batch_size,
            max_batch_total_tokens=ready.max_batch_total_tokens,
            max_batch_prefill_tokens=ready.max_batch_prefill_tokens,
            waiting_served_ratio=self.waiting_served_ratio,
            max_waiting_tokens=self.max_waiting_tokens,
            payload_limit=self.payload_limit,
            validation_workers=self.validation_workers,
            enable_prefill_logprobs=self.enable_prefill_logprobs,
            cors_allow_origin=self.cors_allow_origin,
            compute_type=self.compute_type or f"1-{ready.device}",
            model_dtype=ready.dtype,
            model_device_type=ready.device,
            vocab_size=ready.vocab_size,
            keep_alive_s=self.keep_alive,
        )

    def child_environment(self) -> dict[str, str]:
        """The engine's environment: ours, without secrets it has no use for."""
        secrets = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN", "API_KEY")
        ours = {name: value for name, value in os.environ.items() if name not in secrets}
        # libgomp's threads spin for milliseconds while they wait, which starves everything else on
        # a small machine: on two busy cores eyas gave 15 tokens/s to one stream so, and 174 to 246
        # with OMP_WAIT_POLICY=PASSIVE. But sleeping at once costs on an idle one: 8 rows of a 150M
        # model took 45 ms a step against 27. A short spin is as good as either.
        if "OMP_WAIT_POLICY" in ours:
            return ours
        return {"GOMP_SPINCOUNT": "10000", **ours}


class _Environment(EnvSettingsSource):
    """The environment, but for a HOSTNAME that Docker or a shell has set to the machine's name."""

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        if not _is_address(str(found.get("hostname", "localhost"))):
            del found["hostname"]
        return found


def load_settings(**flags: Any) -> Settings:
    """Settings from flags (None means not given), environment and file.

    Raises ConfigError naming the setting, its value and what is allowed.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config-file: {error}") from None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text == "localhost"
    return True


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{name}: there is no such setting (in --config-file)"
    if not first["loc"]:
        return message
    return f"{name}: {message[0].lower()}{message[1:]} (given: {first['input']!r})"
