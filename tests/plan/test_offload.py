"""How many layers --cpu-offload-gb keeps with the host, and what it says of the cost."""

from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint
from tiercel.errors import ConfigError
from tiercel.parallel.shard import Shard
from tiercel.plan.models import PUBLISHED
from tiercel.plan.offload import offload_sentence, offloaded_bytes, offloaded_layers
from tiercel.plan.sizes import Storage, linear_bytes
from tiercel.wire.options import EngineOptions
from tiercel.worker.worker import Worker

BF16 = Storage(None, False, "bfloat16")
SEVEN = Shard(PUBLISHED["falcon-7b"])


def test_whole_layers_that_make_up_as_much() -> None:
    assert offloaded_layers(SEVEN, BF16, 0.0) == 0
    layer = linear_bytes(SEVEN.whole, BF16) // SEVEN.whole.num_layers
    for gigabytes in (0.1, 4.0, 13.0):
        count = offloaded_layers(SEVEN, BF16, gigabytes)
        assert (count - 1) * layer < gigabytes * 1e9 <= count * layer
        assert offloaded_bytes(SEVEN, BF16, gigabytes) == count * layer


def test_a_rank_keeps_a_part_of_its_share() -> None:
    half = Shard(PUBLISHED["falcon-7b"], 0, 2)
    assert offloaded_layers(half, BF16, 3.0) == pytest.approx(
        2 * offloaded_layers(SEVEN, BF16, 3.0), abs=1
    )


def test_the_cost_is_said() -> None:
    """4 GB over a bus of 25 GB/s."""
    sentence = offload_sentence(SEVEN, BF16, offloaded_layers(SEVEN, BF16, 4.0))
    assert sentence.startswith("10 of 32 layers (4.1 GB) stay in the host's memory")
    assert "about 166 ms more at 25 GB/s, whatever the batch" in sentence


def test_more_than_there_is() -> None:
    with pytest.raises(ConfigError, match=r"--cpu-offload-gb 20: all layers have 13.3 GB"):
        offloaded_layers(SEVEN, BF16, 20.0)


def test_not_with_quantization() -> None:
    with pytest.raises(ConfigError, match="--cpu-offload-gb with --quantize bitsandbytes: "):
        offloaded_layers(SEVEN, Storage("bitsandbytes", False, "bfloat16"), 1.0)


def test_not_on_a_cpu(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b")
    with pytest.raises(ConfigError, match="--cpu-offload-gb on a CPU: "):
        Worker(EngineOptions(str(tmp_path), device="cpu", cpu_offload_gb=0.1)).load()
