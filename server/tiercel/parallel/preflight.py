"""What would stop several ranks on one machine, found out before any of them loads."""

import logging
import shutil
from pathlib import Path

import torch

from tiercel.errors import ConfigError, OutOfMemory
from tiercel.model.config import load_spec
from tiercel.parallel.cards import Card, visible_cards
from tiercel.parallel.shard import Shard
from tiercel.plan.offload import offloaded_bytes
from tiercel.plan.sizes import chosen_storage, weight_bytes
from tiercel.wire.options import EngineOptions, World

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (it is measured, nothing is written)
# NCCL's rings between two cards of one machine take about 10 MB a pair and channel.
SHARED_MEMORY_BYTES = 256 << 20


def gpus() -> int:
    """How many there are for --sharded true. Raises ConfigError if there is none."""
    count = torch.cuda.device_count()
    if not count:
        raise ConfigError("--sharded true: torch sees no GPU; give --num-shard to use the CPU")
    return count


def check_machine(options: EngineOptions, world: World) -> None:
    """Raises ConfigError or OutOfMemory, with the remedy, for `world.local_size` ranks here."""
    spec = load_spec(
        Path(options.model_path), rope_scaling=options.rope_scaling, rope_factor=options.rope_factor
    )
    dtype = options.dtype or spec.dtype
    storage = chosen_storage(spec, options.quantize, options.double_quant, dtype)
    needed = weight_bytes(spec, storage, world.size)  # also refuses what cannot be dealt out
    if options.device == "cpu" or not torch.cuda.is_available():
        return
    shard = Shard(spec, world.rank, world.size, storage.unit)
    at_host = offloaded_bytes(shard, storage, options.cpu_offload_gb)
    check_cards(visible_cards(), world.local_size, needed - at_host)
    if options.nccl_shared_memory:
        check_shared_memory(shutil.disk_usage(SHARED_MEMORY).free)


def check_cards(cards: list[Card], ranks: int, needed: int) -> None:
    """Enough cards, alike, each with `needed` bytes for a rank's weights."""
    if len(cards) < ranks:
        raise ConfigError(
            f"{ranks} ranks on this machine need {ranks} GPUs, but {len(cards)} can be seen; lower "
            "--num-shard (torchrun: --nproc-per-node), or "
            "check CUDA_VISIBLE_DEVICES and the container's GPUs"
        )
    names = sorted({card.name for card in cards[:ranks]})
    if len(names) > 1:
        logger.warning(
            "the GPUs are not alike (%s): the slowest decides the speed, the smallest the cache; "
            "choose equal ones with CUDA_VISIBLE_DEVICES",
            ", ".join(names),
        )
    for number, card in enumerate(cards[:ranks]):
        if card.free_bytes < needed:
            raise OutOfMemory(
                f"GPU {number} ({card.name}) has {card.free_bytes / 1e9:.1f} GB free, and a rank's "
                f"weights need {needed / 1e9:.1f} GB; end what else uses it (nvidia-smi shows "
                "that), raise --num-shard, or quantize"
            )


def check_shared_memory(free: int) -> None:
    """NCCL talks through it between cards that cannot reach each other's memory."""
    if free < SHARED_MEMORY_BYTES:
        raise ConfigError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, and ranks on one machine need "
            f"{SHARED_MEMORY_BYTES >> 20}; start the container with --shm-size 1g (in Kubernetes "
            "an emptyDir with medium Memory), or set NCCL_SHM_DISABLE=1"
        )
