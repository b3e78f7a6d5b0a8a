"""Which settings fit a card, and the one flag that makes a plan fit which does not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tiercel.errors import ConfigError
from tiercel.model.spec import FalconSpec
from tiercel.plan.cards import Card
from tiercel.plan.memory import MemoryPlan, Workload, plan_memory
from tiercel.plan.sizes import Storage

SHARDS = (1, 2, 4, 8)
SMALL_PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Option:
    """One way to run the model on cards of one kind."""

    storage: Storage
    num_shard: int
    plan: MemoryPlan

    @property
    def label(self) -> str:
        shards = f" --num-shard {self.num_shard}" if self.num_shard > 1 else ""
        return self.storage.label + shards


def storages(spec: FalconSpec, dtype: str) -> tuple[Storage, ...]:
    """Every way to store the linear layers that differs in size, largest first.

    Of a checkpoint that is quantized already there is one.
    """
    if spec.quantization is not None:
        return (Storage(spec.quantization.quantize, spec.quantization.double_quant, dtype),)
    return (
        Storage(None, False, dtype),
        Storage("bitsandbytes", False, dtype),
        Storage("bitsandbytes-nf4", False, dtype),
        Storage("bitsandbytes-nf4", True, dtype),
    )


def options(spec: FalconSpec, card: Card, dtype: str, load: Workload) -> Iterator[Option]:
    """Every storage on 1, 2, 4 and 8 cards, those that fit."""
    for storage in storages(spec, dtype):
        for num_shard in SHARDS:
            option = _option(spec, storage, card, num_shard, load)
            if option is not None and option.plan.fits:
                yield option


def remedy(
    spec: FalconSpec, storage: Storage, card: Card, num_shard: int, load: Workload
) -> str | None:
    """The one flag to add or change so that this plan fits, the least costly first.

    A smaller step costs only time to the first token; quantization costs some quality; more cards
    cost money. None where no single flag is enough.
    """
    small = replace(load, prefill_tokens=min(load.prefill_tokens, SMALL_PREFILL_TOKENS))
    if plan_memory(spec, storage, card, num_shard, small).fits:
        return f"--max-batch-prefill-tokens {small.prefill_tokens}"
    for other in storages(spec, storage.dtype):
        smaller = other.matrix(64, 4096) < storage.matrix(64, 4096)
        if smaller and plan_memory(spec, other, card, num_shard, load).fits:
            same = storage.four_bit and other.double_quant
            return "--double-quant" if same else f"--quantize {other.label}"
    for shards in SHARDS:
        option = _option(spec, storage, card, shards, load) if shards > num_shard else None
        if option is not None and option.plan.fits:
            return f"--num-shard {shards}"
    plan = plan_memory(spec, storage, card, num_shard, load)
    if plan.cache_tokens >= min(256, plan.sequence_tokens):
        return f"--max-total-tokens {plan.cache_tokens}"
    return None


def _option(
    spec: FalconSpec, storage: Storage, card: Card, num_shard: int, load: Workload
) -> Option | None:
    """None where the KV heads cannot be dealt to so many ranks."""
    try:
        return Option(storage, num_shard, plan_memory(spec, storage, card, num_shard, load))
    except ConfigError:
        return None
