"""Which batch sizes are captured, and what their graphs take: the plan and the server agree."""

from dataclasses import replace

import pytest
import torch

from tiercel.parallel.shard import Shard
from tiercel.plan.cards import CARDS
from tiercel.plan.graphs import graph_sizes
from tiercel.plan.memory import GRAPH_BYTES, Workload, graph_bytes, plan_memory
from tiercel.plan.models import PUBLISHED
from tiercel.plan.sizes import Storage
from tiercel.wire.options import EngineOptions
from tiercel.worker.cuda.graphs import SharedLogits
from tiercel.worker.cuda.platform import CudaPlatform
from tiercel_kernels.choose import reference_ops

BF16 = Storage(None, False, "bfloat16")
INT8, NF4 = (Storage(f"bitsandbytes{end}", False, "bfloat16") for end in ("", "-nf4"))
CPU = torch.device("cpu")


@pytest.mark.parametrize("max_rows", [1, 3, 8, 127, 128, 200, 512])
def test_every_batch_fits_with_little_padding(max_rows: int) -> None:
    sizes = graph_sizes(max_rows, None)
    assert sizes == sorted(set(sizes)) and sizes[-1] == max_rows
    for rows in range(1, max_rows + 1):
        size = min(each for each in sizes if each >= rows)
        assert size - rows < (8 if rows <= 128 else 16)


def test_sizes_can_be_given_as_tgi_does() -> None:
    assert graph_sizes(20, (32, 1, 2, 4, 8, 16, 4)) == [1, 2, 4, 8, 16]
    assert graph_sizes(20, (0,)) == []
    assert graph_sizes(600, None)[-1] == 512  # beyond it, steps run without graphs


def of(model: str, storage: Storage, rows: int, ranks: int = 1) -> int:
    spec = PUBLISHED[model]
    return graph_bytes(spec, storage, ranks, graph_sizes(rows), spec.max_positions)


def test_graphs_grow_with_rows_and_vocabulary_whatever_the_weights_are() -> None:
    spec = PUBLISHED["falcon-7b"]
    logits = 2 * 512 * 65024 * 2
    assert of("falcon-7b", BF16, 512) > 43 * GRAPH_BYTES + logits  # of 43 sizes
    half = replace(spec, vocab_size=spec.vocab_size // 2)
    sizes = graph_sizes(512)
    smaller = graph_bytes(half, BF16, 1, sizes, 2048)
    assert graph_bytes(spec, BF16, 1, sizes, 2048) - smaller == logits // 2
    # Quantized weights are written out where eager steps do it.
    assert of("falcon-7b", NF4, 64) == of("falcon-7b", INT8, 64) == of("falcon-7b", BF16, 64)
    assert graph_bytes(spec, BF16, 1, [], 2048) == 0


def test_long_rows_need_room_for_the_parts_of_their_attention() -> None:
    spec = PUBLISHED["falcon-180b"]
    short, long = (graph_bytes(spec, BF16, 1, [512], tokens) for tokens in (256, 2048))
    assert long - short == 512 * 8 * 232 * 65 * 4


def test_one_weight_is_written_out_at_a_time() -> None:
    load = Workload()
    for model, widest in (("falcon-7b", 18176 * 4544), ("falcon-40b", 32768 * 8192)):
        plans = [
            plan_memory(PUBLISHED[model], storage, CARDS["h200"], 1, load)
            for storage in (BF16, INT8, NF4)
        ]
        assert [plan.staging for plan in plans] == [0, 2 * widest, 2 * widest]
        assert {plan.activations for plan in plans} == {plans[0].activations}


@pytest.mark.parametrize("storage", [BF16, INT8, NF4], ids=lambda each: each.label)
@pytest.mark.parametrize(("model", "ranks"), [("falcon-7b", 1), ("falcon-40b", 2)])
def test_the_server_keeps_free_what_the_plan_says(model: str, ranks: int, storage: Storage) -> None:
    spec = PUBLISHED[model]
    shard = Shard(spec, 0, ranks, storage.unit)
    for rows in (7, 128, 512):
        plan = plan_memory(spec, storage, CARDS["h200"], ranks, Workload(max_rows=rows))
        platform = CudaPlatform(CPU, reference_ops())
        options = EngineOptions(model_path="", max_concurrent_requests=rows)
        platform.parts(shard, storage, options, spec.max_positions)
        assert platform.graph_bytes == plan.graphs
    without = EngineOptions(model_path="", cuda_graphs=False)
    platform.parts(shard, storage, without, spec.max_positions)
    assert platform.graph_bytes == 0


def test_all_sizes_share_the_memory_of_the_largest_ones_logits() -> None:
    shared = SharedLogits()
    assert shared.room(None) is None
    largest = shared.room(torch.zeros(5, 9, dtype=torch.float16)[:, :7])
    smaller = shared.room(torch.zeros(2, 7, dtype=torch.float16))
    assert largest is not None and smaller is not None
    assert largest.is_contiguous() and largest.shape == (5, 7)
    assert smaller.data_ptr() == largest.data_ptr() and smaller.shape == (2, 7)
    with pytest.raises(ValueError, match="6 rows of logits after 5"):
        shared.room(torch.zeros(6, 7))
