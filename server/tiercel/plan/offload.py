"""--cpu-offload-gb: how many layers stay in the host's memory, and what that costs. Torch-free."""

from tiercel.errors import ConfigError
from tiercel.parallel.shard import Shard
from tiercel.plan.sizes import Storage, linear_bytes

# From pinned memory over PCIe 4 x16, as an A10G or A100 has it; an H100's PCIe 5 has about 50.
BUS = 25e9


def offloaded_layers(shard: Shard, storage: Storage, gigabytes: float) -> int:
    """The fewest layers of a rank whose linear weights make up so many GB of 10^9 bytes.

    Raises ConfigError for what cannot be combined, or if there is not so much.
    """
    if not gigabytes:
        return 0
    if storage.quantize is not None:
        raise ConfigError(
            f"--cpu-offload-gb with --quantize {storage.quantize}: quantized weights cannot stay "
            "in the host's memory; leave one of the two out"
        )
    layers, whole = shard.whole.num_layers, linear_bytes(shard.whole, storage, shard.ranks)
    count = -(-int(gigabytes * 1e9) * layers // whole)
    if count > layers:
        raise ConfigError(
            f"--cpu-offload-gb {gigabytes:g}: all layers have {whole / 1e9:.1f} GB on a rank; "
            "lower it, or use --device cpu"
        )
    return count


def offloaded_bytes(shard: Shard, storage: Storage, gigabytes: float) -> int:
    """Bytes that a rank's device does not have to hold."""
    whole = linear_bytes(shard.whole, storage, shard.ranks)
    return offloaded_layers(shard, storage, gigabytes) * (whole // shard.whole.num_layers)


def offload_sentence(shard: Shard, storage: Storage, layers: int) -> str:
    """What the user is told at the start."""
    whole = linear_bytes(shard.whole, storage, shard.ranks)
    size = layers * (whole // shard.whole.num_layers)
    return (
        f"{layers} of {shard.whole.num_layers} layers ({size / 1e9:.1f} GB) stay in the host's "
        f"memory: every step reads them anew, about {size / BUS * 1e3:,.0f} ms more at "
        f"{BUS / 1e9:.0f} GB/s, whatever the batch"
    )
