"""Flags, environment and file become one frozen tree. The only reader of the environment.

Names are TGI's: the variable of `--max-input-tokens` is MAX_INPUT_TOKENS. A flag beats the
environment, which beats the file of `--config-file` (TOML), which beats a hosting platform's own
variables. Each component gets its own slice.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from tiercel.api.options import EdgeOptions
from tiercel.errors import ConfigError
from tiercel.parallel.interface import interface_of
from tiercel.plan.sizes import FOUR_BITS
from tiercel.platform_variables import platform_values, traces_url
from tiercel.rank_settings import RankSettings
from tiercel.secret_flags import SECRET_VARIABLES
from tiercel.settings_sources import OurVariables
from tiercel.settings_text import error_sentence, listed_keys, listed_sizes, plain_level
from tiercel.tgi_flags import known_method, without_effect
from tiercel.wire.messages import EngineReady
from tiercel.wire.options import EngineOptions, World

Positive = Annotated[int, Field(gt=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Route = Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~:@/-]+$", max_length=512)]


class Settings(RankSettings):
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
    quantize: Annotated[str | None, AfterValidator(known_method)] = Field(
        None,
        description="bitsandbytes (int8), bitsandbytes-nf4 or bitsandbytes-fp4: quantize the "
        "layers while loading. bitsandbytes-llm-int8: activations, too, by bitsandbytes itself.",
    )
    double_quant: bool = Field(
        False, description="With nf4 and fp4: quantize the blocks' statistics, too."
    )
    cpu_offload_gb: float = Field(
        0.0, ge=0, le=4096,
        description="GB of the layers' weights that stay in host memory, on a GPU too small for "
        "all; every step reads them anew, and the start says what that costs.",
    )  # fmt: skip
    rope_scaling: Literal["linear", "dynamic"] | None = Field(
        None, description="Instead of the configuration's; factor 1 unless --rope-factor is given."
    )
    rope_factor: float | None = Field(
        None, gt=0, le=1024, description="Context extension factor; linear unless --rope-scaling."
    )
    huggingface_hub_cache: str | None = Field(None, description="Folder of downloaded models.")
    tokenizer_config_path: Path | None = Field(
        None, description="File with the chat template, instead of tokenizer_config.json."
    )
    trust_remote_code: bool = without_effect(False, "No effect: code of a model is never run.")

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
    max_total_tokens: Annotated[int, Field(ge=2, le=2**31 - 1)] | None = Field(
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
    waiting_served_ratio: float = without_effect(
        0.3, "No longer needed: new requests join every step.", ge=0
    )
    max_waiting_tokens: int = without_effect(
        20, "No longer needed: new requests join every step.", ge=0
    )
    # With a 146M model and a prompt of 1,500 tokens among 8 streams, medians of largest gap (in
    # median gaps) and first token (over that alone), 20 rounds or more each. Zen 4, in turns: 4.25
    # gives 5.0 and 1.46, 4.5 5.2 and 1.39; later 4.5 5.1 and 1.48, 4.75 5.4 and 1.42, where a
    # fifth of the rounds is over 6. AMX: 4.25 4.6 and 1.40, 4.5 4.7 and 1.35. Zen 1: 4.25 4.6 and
    # 1.34, 4.5 5.1 and 1.32; of 20 rounds none and one is over 6. In a noisy hour, 4.25
    # twice: 5.7 and 1.36, 5.1 and 1.41, and 14 of the 40 rounds over 6.
    step_stretch: float = Field(
        4.25, ge=0, le=1000,
        description="How many decode steps long a step with prompt chunks may be, and no longer "
        "than 1 s or, if that is more, two of them; about 5 s if nobody decodes. 0: no limit.",
    )  # fmt: skip
    prefix_caching: bool = Field(True, description="Reuse the KV cache of equal beginnings.")

    # Features
    enable_prefill_logprobs: bool = Field(
        False, description="Fill `prefill` for requests with decoder_input_details."
    )
    disable_grammar_support: bool = Field(
        False, description="Refuse requests with a grammar, and load nothing for them."
    )
    watermark_gamma: float = Field(0.5, gt=0, lt=1, description="Share of favoured tokens.")
    watermark_delta: float = Field(2.0, ge=0, le=100, description="Bonus of favoured tokens.")

    # Machine
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the model runs: on a GPU if there is one, or as it says."
    )
    cuda_graphs: str | None = Field(
        None,
        pattern=r"^\d+(,\d+)*$",
        description="Batch sizes captured as CUDA graphs, 1,2,4; 0: none; all useful ones if not "
        "given. No effect on a CPU.",
    )
    one_shot_all_reduce: bool = Field(
        False,
        description="Ranks on one machine's GPUs add up small results by reading each other's "
        "memory, not over NCCL. Not run on several GPUs yet.",
    )
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
    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Bearer key that callers need; repeatable. Others on the machine may see it "
        "for a moment: API_KEY (separated by commas) or --api-keys-file are better.",
    )
    api_keys_file: Path | None = Field(
        None, description="File of bearer keys, one per line: key, name:key or name:key:admin."
    )
    protect_metrics: bool = Field(
        False, description="Ask for an admin key at /metrics and /info too."
    )
    header_timeout: Seconds = Field(
        10.0, description="Seconds within which the headers of a request have to arrive."
    )
    body_timeout: Seconds = Field(
        30.0, description="Seconds within which the body of a request has to arrive."
    )
    idle_timeout: Seconds = Field(
        75.0, description="Seconds that a connection is kept open for its next request."
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
    usage_stats: str = without_effect("off", "No effect: nothing is sent.")
    compute_type: str | None = Field(None, description="Value of the x-compute-type header.")
    disable_docs: bool = Field(False, description="No /docs and no /api-doc/openapi.json.")
    disable_playground: bool = Field(False, description="No /playground.")
    aip_health_route: Route | None = Field(
        None, description="Vertex AI's path for GET health, beside /health."
    )
    aip_predict_route: Route | None = Field(
        None, description="Vertex AI's path for POST predictions, beside /vertex."
    )
    env: bool = Field(False, description="Log versions and the machine at the start.")

    # Metrics
    prometheus_port: int | None = Field(
        None, ge=0, le=65535, description="A second port for /metrics alone; none. 0: a free one."
    )
    metrics_buckets: Literal["compat", "lean"] = Field(
        "compat", description="TGI's histogram bounds, or at most 20 for each: 1,500 series fewer."
    )
    metrics_alias: Literal["vllm"] | None = Field(
        None, description="Expose our metrics under vLLM's names too."
    )

    # Traces
    otlp_endpoint: str | None = Field(
        None, pattern=r"^https?://", description="Collector of traces, http://host:4317; none."
    )
    otlp_protocol: Literal["grpc", "http/protobuf"] = Field(
        "grpc", description="How to talk to the collector."
    )
    otlp_service_name: str | None = Field(
        None,
        description="The service's name in traces; text-generation-inference.router, unless "
        "OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has one.",
    )
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
        """Flags, then environment, then the file, then what a platform says."""
        environment = OurVariables(settings_cls)
        platform = InitSettingsSource(settings_cls, platform_values(os.environ))
        path = init_settings().get("config_file") or os.environ.get("CONFIG_FILE")
        if path is None:
            return init_settings, environment, platform
        file = TomlConfigSettingsSource(settings_cls, Path(path))
        return init_settings, environment, file, platform

    @model_validator(mode="before")
    @classmethod
    def _forgiving_values(cls, data: dict[str, Any]) -> dict[str, Any]:
        origins = data.get("cors_allow_origin")
        if isinstance(origins, str):
            data["cors_allow_origin"] = tuple(part.strip() for part in origins.split(","))
        keys = data.get("api_key")
        if isinstance(keys, str):
            data["api_key"] = listed_keys(keys)
        if isinstance(data.get("log_level"), str):
            data["log_level"] = plain_level(data["log_level"])
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
        if self.double_quant and self.quantize not in (None, *FOUR_BITS):
            raise ValueError("--double-quant needs --quantize bitsandbytes-nf4 or bitsandbytes-fp4")
        config = self.tokenizer_config_path
        if config is not None and not config.is_file():
            raise ValueError(f"--tokenizer-config-path {config} is not a file")
        if self.config_file is not None and not self.config_file.is_file():
            raise ValueError(f"--config-file {self.config_file} is not a file")
        return self

    @property
    def world(self) -> World | None:
        """The ranks that another launcher starts, this process among them. Raises ConfigError."""
        return self.world_of(os.environ)

    @property
    def traces_endpoint(self) -> str | None:
        """Where spans go, as the exporter wants it; None: nowhere."""
        return traces_url(self.otlp_endpoint, self.otlp_protocol, os.environ)

    def engine_options(self, model_path: Path) -> EngineOptions:
        """The engine's slice."""
        return EngineOptions(
            model_path=str(model_path),
            dtype=self.dtype,
            quantize=self.quantize,
            double_quant=self.double_quant,
            cpu_offload_gb=self.cpu_offload_gb,
            device=self.device,
            max_input_tokens=self.max_input_tokens or self.max_input_length,
            max_total_tokens=self.max_total_tokens,
            max_batch_prefill_tokens=self.max_batch_prefill_tokens,
            max_batch_total_tokens=self.max_batch_total_tokens,
            max_batch_size=self.max_batch_size,
            max_concurrent_requests=self.max_concurrent_requests,
            prefix_caching=self.prefix_caching,
            step_stretch=self.step_stretch,
            grammar_support=not self.disable_grammar_support,
            watermark_gamma=self.watermark_gamma,
            watermark_delta=self.watermark_delta,
            memory_fraction=self.cuda_memory_fraction,
            rope_scaling=self.rope_scaling,
            rope_factor=self.rope_factor,
            cuda_graphs=self.cuda_graphs != "0",
            cuda_graph_sizes=listed_sizes(self.cuda_graphs),
            num_shard=1 if self.world else self.shards(self.device),
            rendezvous_port=self.master_port,
            world=self.world,
            one_shot_all_reduce=self.one_shot_all_reduce,
            nccl_shared_memory="NCCL_SHM_DISABLE" not in os.environ,
            rank_timeout_s=self.heartbeat_timeout,
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
            grammar_support=not self.disable_grammar_support,
            cors_allow_origin=self.cors_allow_origin,
            protect_metrics=self.protect_metrics,
            compute_type=self.compute_type or f"{ready.ranks}-{ready.device_name}",
            model_dtype=ready.dtype,
            quantize=ready.quantize,
            model_device_type=ready.device,
            vocab_size=ready.vocab_size,
            keep_alive_s=self.keep_alive,
            docs=not self.disable_docs,
            playground=not self.disable_playground,
            health_route=self.aip_health_route,
            predict_route=self.aip_predict_route,
        )

    def child_environment(self) -> dict[str, str]:
        """The engine's environment: ours, without secrets it has no use for."""
        # Settings are read whatever the case of their names, so the names are compared so too.
        secret = SECRET_VARIABLES
        ours = {name: value for name, value in os.environ.items() if name.upper() not in secret}
        # libgomp's threads spin for milliseconds while they wait, which starves everything else on
        # a small machine: on two busy cores eyas gave 15 tokens/s to one stream so, and 174 to 246
        # with OMP_WAIT_POLICY=PASSIVE. But sleeping at once costs on an idle one: 8 rows of a 150M
        # model took 45 ms a step against 27. A short spin is as good as either.
        added = {} if "OMP_WAIT_POLICY" in ours else {"GOMP_SPINCOUNT": "10000"}
        if (interface := interface_of(self.world)) is not None:
            added["GLOO_SOCKET_IFNAME"] = interface  # where ranks listen for each other
        return added | ours


def load_settings(kind: type[Settings] = Settings, /, **flags: Any) -> Settings:
    """Settings from flags (None means not given), environment and file.

    Raises ConfigError naming the setting, its value and what is allowed.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return kind(**given)
    except ValidationError as error:
        raise ConfigError(error_sentence(error)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config-file: {error}") from None
