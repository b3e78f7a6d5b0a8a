"""The arguments of the Serve application, checked, and what Ray is asked for because of them."""

import shlex
import sys
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

# What a replica decides itself, and so may not stand in `flags`.
_OWN_FLAGS = (
    "--model-id", "--num-shard", "--sharded", "--device", "--hostname", "--port", "-p",
    "--prometheus-port", "--master-addr", "--master-port",
)  # fmt: skip
# Beside draining: SIGTERM to a server that has nothing to do any more, and its end.
STOP_S = 15.0
SERVE_REPORT_S = 10.0  # how often replicas tell the controller of their load


class Options(BaseModel):
    """Arguments by name, as `serve run` and a config file give them."""

    model: str | None = Field(None, description="Folder or hub name; the embedded eyas.")
    num_shard: int = Field(1, ge=1, le=64, description="Ranks of a replica.")
    device: Literal["cpu", "cuda"] = Field("cpu", description="cuda: a GPU for each rank.")
    cpus: float = Field(1.0, gt=0, description="CPUs for each rank.")
    strategy: Literal["PACK", "STRICT_PACK"] = Field(
        "PACK", description="STRICT_PACK: all ranks of a replica on one machine."
    )
    flags: list[str] = Field([], description="More flags of `tiercel serve`.")
    python: str = Field(sys.executable, description="Interpreter that has tiercel, on all nodes.")

    min_replicas: int = Field(1, ge=1, description="Never fewer.")
    max_replicas: int = Field(1, ge=1, description="Never more.")
    target_ongoing_requests: float = Field(16, gt=0, description="Per replica; more scales up.")
    max_ongoing_requests: int = Field(64, ge=1, description="Per replica; more wait in Serve.")
    max_queued_requests: int = Field(-1, ge=-1, description="That wait in Serve; -1: any number.")
    upscale_delay_s: float = Field(10, ge=0, description="How long it has to be too much.")
    downscale_delay_s: float = Field(300, ge=0, description="How long it has to be too little.")
    look_back_s: float = Field(15, gt=0, description="Time over which the load is averaged.")

    drain_s: float = Field(90, gt=0, description="What requests get before a replica stops.")
    start_s: float = Field(600, gt=0, description="What loading the model may take.")
    health_period_s: float = Field(5, gt=0, description="Between two checks; three fail a replica.")
    metrics_ports: str | None = Field(
        None,
        pattern=r"^\d{1,5}-\d{1,5}$",
        description="FIRST-LAST: each replica serves /metrics at a free one on its loopback.",
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        unknown = set(given) - set(cls.model_fields)
        if unknown:
            raise ValueError(
                f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(cls.model_fields)}"
            )
        return given

    @field_validator("flags", mode="before")
    @classmethod
    def _words(cls, given: Any) -> Any:
        return shlex.split(given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _consistent(self) -> "Options":
        for flag in self.flags:
            if flag.partition("=")[0] in _OWN_FLAGS:
                raise ValueError(f"flags: {flag} is the replica's to set")
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must not be more than max_replicas")
        if self.metrics_ports and not self.ports_of_metrics():
            raise ValueError("metrics_ports: FIRST must not be more than LAST")
        return self

    def ports_of_metrics(self) -> range:
        """Those a replica may choose from; none: no port for metrics."""
        if self.metrics_ports is None:
            return range(0)
        first, last = self.metrics_ports.split("-")
        return range(int(first), int(last) + 1)

    def server_flags(self) -> list[str]:
        """What all ranks are started with."""
        model = [] if self.model is None else ["--model-id", self.model]
        flags = [*model, "--device", self.device, *self.flags]
        # Otherwise each rank would compute on all cores, whatever Ray has reserved for it.
        given = any(flag.partition("=")[0] == "--threads" for flag in self.flags)
        if self.device == "cpu" and not given:
            flags += ["--threads", str(max(1, int(self.cpus)))]
        return flags

    def rank_resources(self) -> dict[str, float]:
        """What Ray reserves for one rank, as options of an actor."""
        return {"num_cpus": self.cpus, "num_gpus": 1.0 if self.device == "cuda" else 0.0}

    def autoscaling(self) -> dict[str, float]:
        """Serve's autoscaling by requests that run or wait."""
        given: dict[str, float] = {
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_ongoing_requests,
            "upscale_delay_s": self.upscale_delay_s,
            "downscale_delay_s": self.downscale_delay_s,
            "look_back_period_s": self.look_back_s,
        }
        if self.look_back_s <= SERVE_REPORT_S:
            # Deprecated, but in Ray 2.60 the variables that are to replace it have no effect.
            given["metrics_interval_s"] = self.look_back_s / 3
        return given

    def deployment(self) -> dict[str, Any]:
        """Options of the Serve deployment."""
        given: dict[str, Any] = {
            "ray_actor_options": self.rank_resources(),
            "max_ongoing_requests": self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "autoscaling_config": self.autoscaling(),
            # Routers have forgotten the replica before it first counts what is left.
            "graceful_shutdown_wait_loop_s": 1.0,
            "graceful_shutdown_timeout_s": self.drain_s + STOP_S,
            "health_check_period_s": self.health_period_s,
            "health_check_timeout_s": 15.0,
            # A flag or a weight file that is wrong does not get better by itself.
            "max_constructor_retry_count": 3,
        }
        if self.num_shard > 1:
            bundle = {"CPU": self.cpus} | ({"GPU": 1.0} if self.device == "cuda" else {})
            given["placement_group_bundles"] = [bundle] * self.num_shard
            given["placement_group_strategy"] = self.strategy
        return given
