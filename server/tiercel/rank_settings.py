"""How many ranks share the model and who starts them: flags, SageMaker, torchrun's variables."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from tiercel.errors import ConfigError
from tiercel.tgi_flags import TgiFlags
from tiercel.wire.options import World

ALL_GPUS = 0  # as a number of shards: what the engine finds
_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_PLACE = ("MASTER_ADDR", "MASTER_PORT")


class RankSettings(TgiFlags):
    """The flags of tensor parallelism; TGI's names."""

    num_shard: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Ranks that share the model, each on a GPU of its own or on the CPU."
    )
    sharded: Literal["true", "false"] | None = Field(
        None, description="true: on all GPUs, unless --num-shard says how many. false: on one."
    )
    sm_num_gpus: Annotated[int, Field(ge=0)] | None = Field(
        None, description="SageMaker's number of GPUs: --num-shard, unless that or the CPU is set."
    )
    master_addr: str | None = Field(
        None, description="With torchrun: the address of rank 0's machine. It sets this itself."
    )
    master_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="Port at which the ranks meet; a free one on one machine."
    )

    def ignored(self) -> list[str]:
        """See TgiFlags; one rank meets nobody."""
        alone = self.num_shard in (None, 1) and self.sharded != "true" and self.master_addr is None
        return [*super().ignored(), *(["--master-port"] if alone and self.master_port else [])]

    def shards(self, device: str) -> int:
        """Ranks to start on this machine; ALL_GPUS: as many as there are. Raises ConfigError."""
        if self.sharded == "false" and (self.num_shard or 1) > 1:
            raise ConfigError(f"--sharded false contradicts --num-shard {self.num_shard}")
        if self.num_shard is not None:
            return self.num_shard
        if self.sharded == "true":
            if device == "cpu":
                raise ConfigError("--sharded true counts GPUs: on a CPU, give --num-shard")
            return ALL_GPUS
        if self.sm_num_gpus and device != "cpu" and self.sharded is None:
            return self.sm_num_gpus
        return 1

    def world_of(self, environment: Mapping[str, str]) -> World | None:
        """The ranks that torchrun or another launcher starts, from its variables; None without.

        Raises ConfigError where they contradict the flags or are incomplete.
        """
        size = _number(environment, "WORLD_SIZE", 1)
        if size == 1 and environment.get("RANK", "0") == "0":
            return None
        missing = [name for name in _LAUNCHERS if name not in environment]
        if missing or self.master_addr is None or self.master_port is None:
            raise ConfigError(
                f"RANK or WORLD_SIZE is set, but not {', '.join(missing or _PLACE)}; a launcher "
                f"sets {', '.join((*_LAUNCHERS, *_PLACE))}: set all of them, or none"
            )
        if self.num_shard not in (None, size):
            raise ConfigError(
                f"--num-shard {self.num_shard} contradicts WORLD_SIZE {size}: leave it out where a "
                "launcher starts the ranks"
            )
        if self.sharded == "false":
            raise ConfigError(f"--sharded false contradicts WORLD_SIZE {size}")
        rank, local_rank = _number(environment, "RANK", 0), _number(environment, "LOCAL_RANK", 0)
        local_size = _number(environment, "LOCAL_WORLD_SIZE", 1)
        if rank >= size:
            raise ConfigError(f"RANK {rank} must be less than WORLD_SIZE {size}")
        if local_rank >= local_size or local_size > size:
            raise ConfigError(
                f"LOCAL_RANK {local_rank} must be less than LOCAL_WORLD_SIZE {local_size}, and "
                f"that at most WORLD_SIZE {size}"
            )
        return World(
            rank=rank,
            size=size,
            local_rank=local_rank,
            local_size=local_size,
            address=self.master_addr,
            port=self.master_port,
            hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() == "true",
            attempt=_number(environment, "TORCHELASTIC_RESTART_COUNT", 0),
        )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name} must be a number, not {text[:40]!r}")
    return int(text)
