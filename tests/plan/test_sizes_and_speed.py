"""Sizes and bounds against figures that were worked out elsewhere, and against real tensors."""

from pathlib import Path

import pytest
import torch

from support.checkpoints import VARIANTS, make_checkpoint
from tiercel.errors import ConfigError
from tiercel.model.checkpoint import Checkpoint
from tiercel.model.config import load_spec
from tiercel.plan.cards import CARDS, Card, card
from tiercel.plan.memory import Workload, plan_memory
from tiercel.plan.models import PUBLISHED, STATED_GB
from tiercel.plan.sizes import (
    RankShape,
    Storage,
    head_bytes,
    kv_bytes_per_token,
    linear_bytes,
    weight_bytes,
)
from tiercel.plan.speed import decode_ms

BF16 = Storage(None, False, "bfloat16")
INT8 = Storage("bitsandbytes", False, "bfloat16")
NF4 = Storage("bitsandbytes-nf4", False, "bfloat16")
NF4_DOUBLE = Storage("bitsandbytes-nf4", True, "bfloat16")

# GB that a decode step reads, from a table made by another program, and KV bytes per token.
READ_GB = {
    ("falcon-rw-1b", BF16): 2.62, ("falcon-rw-1b", INT8): 1.42, ("falcon-rw-1b", NF4): 0.89,
    ("falcon-rw-1b", NF4_DOUBLE): 0.83,
    ("falcon-7b", BF16): 13.84, ("falcon-7b", INT8): 7.22, ("falcon-7b", NF4): 4.32,
    ("falcon-7b", NF4_DOUBLE): 4.01,
    ("falcon-rw-7b", BF16): 15.03, ("falcon-rw-7b", INT8): 7.79, ("falcon-rw-7b", NF4): 4.61,
    ("falcon-11b", BF16): 21.67, ("falcon-11b", INT8): 11.11, ("falcon-11b", NF4): 6.48,
    ("falcon-11b", NF4_DOUBLE): 5.99,
    ("falcon-40b", BF16): 82.60, ("falcon-40b", INT8): 41.87, ("falcon-40b", NF4): 24.00,
    ("falcon-40b", NF4_DOUBLE): 22.10,
    ("falcon-180b", BF16): 357.10, ("falcon-180b", INT8): 179.70, ("falcon-180b", NF4): 101.82,
    ("falcon-180b", NF4_DOUBLE): 93.55,
}  # fmt: skip
KV_BYTES = {
    "falcon-rw-1b": 196_608,
    "falcon-7b": 8_192,
    "falcon-rw-7b": 589_824,
    "falcon-11b": 245_760,
    "falcon-40b": 122_880,
    "falcon-180b": 163_840,
}
# ms of a step at 1,024 tokens of context, from the same table: cards, rows.
BOUNDS_MS = {
    ("falcon-7b", BF16, "a10g", 1, 1): 23.09,
    ("falcon-7b", BF16, "h100", 64, 1): 4.79,
    ("falcon-7b", INT8, "a10g", 64, 1): 13.20,  # by arithmetic
    ("falcon-7b", NF4_DOUBLE, "h200", 1, 1): 0.93,
    ("falcon-11b", INT8, "a100-80", 64, 1): 13.61,
    ("falcon-40b", INT8, "h100", 1, 1): 14.00,
    ("falcon-40b", BF16, "a100-80", 64, 2): 22.66,
    ("falcon-180b", INT8, "h100", 1, 4): 14.99,
    ("falcon-rw-1b", BF16, "h100", 64, 1): 5.17,
}


@pytest.mark.parametrize(("model", "storage"), list(READ_GB), ids=str)
def test_what_a_step_reads(model: str, storage: Storage) -> None:
    spec = PUBLISHED[model]
    read = linear_bytes(spec, storage) + head_bytes(spec, storage)
    # The table leaves out biases and rounds int8's statistics.
    assert read / 1e9 == pytest.approx(READ_GB[model, storage], rel=2e-3, abs=0.006)


@pytest.mark.parametrize("model", list(KV_BYTES))
def test_kv_bytes(model: str) -> None:
    assert kv_bytes_per_token(PUBLISHED[model], BF16) == KV_BYTES[model]


@pytest.mark.parametrize("case", list(BOUNDS_MS), ids=str)
def test_bounds(case: tuple[str, Storage, str, int, int]) -> None:
    model, storage, name, rows, num_shard = case
    bound = decode_ms(PUBLISHED[model], storage, CARDS[name], rows, 1024, num_shard)
    assert bound == pytest.approx(BOUNDS_MS[case], rel=5e-3)


@pytest.mark.parametrize(("model", "quantize"), list(STATED_GB), ids=str)
def test_the_published_figures(model: str, quantize: str | None) -> None:
    spec, storage = PUBLISHED[model], Storage(quantize, False, "bfloat16")
    needed = plan_memory(spec, storage, Card("any", 0)).needed
    assert needed / 1e9 == pytest.approx(STATED_GB[model, quantize], rel=0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_those_of_the_checkpoint(tmp_path: Path, variant: str) -> None:
    make_checkpoint(tmp_path, variant, dtype="bfloat16", layers=3)
    spec = load_spec(tmp_path)
    assert weight_bytes(spec, BF16) == Checkpoint.open(tmp_path, spec).total_bytes


@pytest.mark.parametrize("num_shard", [1, 2, 4, 8])
@pytest.mark.parametrize("model", list(PUBLISHED))
def test_ranks_hold_everything_and_little_twice(model: str, num_shard: int) -> None:
    spec = PUBLISHED[model]
    rank = RankShape.of(spec, num_shard, BF16)
    assert num_shard * rank.heads - spec.num_heads < num_shard
    assert num_shard * rank.kv_heads == max(spec.num_kv_heads, num_shard)
    whole, part = weight_bytes(spec, BF16), weight_bytes(spec, BF16, num_shard)
    assert whole <= num_shard * part < 1.03 * whole


def test_71_heads_become_72() -> None:
    assert RankShape.of(PUBLISHED["falcon-7b"], 2, BF16).heads == 36


def test_an_odd_number_of_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="--num-shard 3 does not deal 128 query heads"):
        RankShape.of(PUBLISHED["falcon-40b"], 3, BF16)


@pytest.mark.parametrize("storage", [INT8, NF4, NF4_DOUBLE], ids=str)
def test_a_matrix_has_as_many_bytes_as_its_tensors(storage: Storage) -> None:
    out, width = 320, 448
    numbers = out * width
    tensors = [torch.empty(numbers, dtype=torch.int8), torch.empty(out)]
    if storage.four_bit:
        blocks = numbers // 64
        tensors = [torch.empty(numbers // 2, dtype=torch.uint8)]
        if storage.double_quant:
            tensors += [torch.empty(blocks, dtype=torch.uint8), torch.empty(-(-blocks // 256))]
        else:
            tensors += [torch.empty(blocks)]
    assert storage.matrix(out, width) == sum(tensor.nbytes for tensor in tensors)


def test_more_rows_longer_steps_and_longer_sequences_cost_memory() -> None:
    spec, h100 = PUBLISHED["falcon-7b"], CARDS["h100"]
    plan = plan_memory(spec, BF16, h100)
    assert plan_memory(spec, BF16, h100, 1, Workload(max_rows=256)).cache < plan.cache
    assert plan_memory(spec, BF16, h100, 1, Workload(prefill_tokens=8192)).cache < plan.cache
    short = plan_memory(spec, BF16, h100, 1, Workload(max_total_tokens=512))
    assert (short.cache, short.needed < plan.needed) == (plan.cache, True)
    assert plan.cache_tokens % 16 == 0
    assert plan.cache_tokens * plan.kv_per_token + plan.fixed + plan.headroom <= plan.memory


def test_a_card_by_its_size_has_no_speed() -> None:
    assert (card("48 GB"), card("48")) == (card("48gb"), Card("48 GB", 48_000_000_000))
    assert decode_ms(PUBLISHED["falcon-7b"], BF16, card("24"), 1, 1024) is None
    assert card("H100") is CARDS["h100"]
    for wrong in ("h900", "-1", "0", "1e9", "999999", "48 GiB", ""):
        with pytest.raises(ConfigError, match="--gpu is"):
            card(wrong)


def test_a_storage_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="--quantize gptq is not supported"):
        Storage("gptq", False, "bfloat16")
    with pytest.raises(ConfigError, match="--double-quant needs --quantize bitsandbytes-nf4"):
        Storage("bitsandbytes", True, "bfloat16")
