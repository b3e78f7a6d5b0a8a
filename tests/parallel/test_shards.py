"""What each rank loads: all of the model between them, and no byte that is another's."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from support.checkpoints import make_checkpoint
from support.process_memory import read_bytes
from tiercel.errors import ConfigError
from tiercel.model.checkpoint import Checkpoint
from tiercel.model.config import load_spec
from tiercel.model.falcon import Falcon
from tiercel.model.loader import FalconLoader
from tiercel.parallel.context import OneRank
from tiercel.parallel.part import Part, Run, even_part
from tiercel.parallel.shard import Shard
from tiercel.parallel.take import take
from tiercel.plan.sizes import Storage, weight_bytes
from tiercel.quantization.method import linear_method
from tiercel.quantization.stored import StoredFourBit, StoredInt8
from tiercel.wire.options import EngineOptions
from tiercel.worker.cpu import CpuPlatform

CASES = [("7b-71", 2), ("7b-71", 8), ("40b", 4), ("180b", 8), ("11b", 2), ("rw-1b", 4), ("7b", 4)]
FLOAT32 = Storage(None, False, "float32")


@dataclass(frozen=True)
class OneOfSeveral(OneRank):
    """A rank while it loads: nothing is asked of the others then."""


def loaded(folder: Path, rank: int, ranks: int) -> Falcon:
    spec = load_spec(folder)
    shard = Shard(spec, rank, ranks)
    parts = CpuPlatform(1).parts(shard, FLOAT32, EngineOptions(str(folder)), 64)
    loader = FalconLoader(
        Checkpoint.open(folder, spec),
        shard,
        dtype=torch.float32,
        method=linear_method(None, torch.float32),
        ranks=OneOfSeveral(rank, ranks),
    )
    return loader.load(parts.attention, parts.style)


@pytest.mark.parametrize(("variant", "ranks"), CASES)
def test_a_rank_holds_its_share_and_what_all_have(tmp_path: Path, variant: str, ranks: int) -> None:
    """Measured, and as planned: 1/N of the matrices; norms and KV heads that all need."""
    make_checkpoint(tmp_path, variant)
    spec = load_spec(tmp_path)
    whole = weight_bytes(spec, FLOAT32)
    norms = sum(
        Checkpoint.open(tmp_path, spec).nbytes(name)
        for name in Checkpoint.open(tmp_path, spec).names
        if "ln" in name or "layernorm" in name or "dense.bias" in name or "4h_to_h.bias" in name
    )
    shard = Shard(spec, 0, ranks)
    heads = shard.spec.num_heads + 2 * shard.spec.num_kv_heads  # and rows of QKV, all in all
    most = (
        (whole - norms) / ranks * max(1, heads * ranks / (spec.num_heads + 2 * spec.num_kv_heads))
    )
    for rank in range(ranks):
        held = loaded(tmp_path, rank, ranks).nbytes
        assert (whole - norms) / ranks <= held + 4 * spec.hidden_size * 8
        assert held <= most * 1.03 + norms
        assert held <= weight_bytes(spec, FLOAT32, ranks)


@pytest.mark.parametrize(("variant", "ranks"), CASES)
def test_a_rank_reads_its_own_bytes_only(tmp_path: Path, variant: str, ranks: int) -> None:
    make_checkpoint(tmp_path, variant, vocab_size=4096)
    spec = load_spec(tmp_path)
    headers = 0
    for rank in range(ranks):
        before = read_bytes(os.getpid())
        Checkpoint.open(tmp_path, spec)
        headers = read_bytes(os.getpid()) - before
        before = read_bytes(os.getpid())
        held = loaded(tmp_path, rank, ranks).nbytes
        read = read_bytes(os.getpid()) - before
        slack = 64 * 1024  # config.json is read again, and /proc itself
        assert read <= held + 2 * headers + slack, (rank, read, held)


@pytest.mark.parametrize(("variant", "ranks"), [*CASES, ("rw-7b", 6), ("180b", 24)])
def test_all_rows_and_columns_are_somewhere(tmp_path: Path, variant: str, ranks: int) -> None:
    make_checkpoint(tmp_path, variant)
    spec = load_spec(tmp_path)
    shards = [Shard(spec, rank, ranks, unit=16) for rank in range(ranks)]
    parts: dict[str, tuple[list[Part], int, int]] = {
        "qkv": ([s.qkv for s in shards], spec.qkv_size, shards[0].spec.qkv_size),
        "attended": (
            [s.attended for s in shards],
            spec.num_heads * spec.head_dim,
            shards[0].spec.num_heads * spec.head_dim,
        ),
        "up": ([s.ffn(0) for s in shards], spec.ffn_size, shards[0].spec.ffn_size),
        "vocab": ([s.vocab for s in shards], spec.vocab_size, shards[0].vocab_size),
    }
    for name, (dealt, size, each) in parts.items():
        assert {part.size for part in dealt} == {each}, name
        found = [index for part in dealt for index in part.indices() if index >= 0]
        assert set(found) == set(range(size)), name
        if name != "qkv":  # a KV head may be on several ranks
            assert len(found) == size, name


def test_even_parts() -> None:
    assert [even_part(0, 10, rank, 3).indices() for rank in range(3)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1],
    ]  # fmt: skip
    assert even_part(0, 10, 0, 1, unit=4).size == 10
    assert [even_part(1, 10, rank, 2, unit=4).size for rank in range(2)] == [8, 8]


@pytest.mark.parametrize("double", [False, True])
def test_saved_blocks_of_4_bits_are_not_cut(double: bool) -> None:
    weight = torch.randn(6, 256)
    stored = StoredFourBit.quantize(weight, "nf4", double_quant=double)
    part = Part(1, (Run(64, 128), Run(None, 64)))
    torch.testing.assert_close(
        stored.columns(part).numbers(),
        take(stored.numbers(), 1, torch.tensor(part.indices())),
        rtol=1e-6,
        atol=1e-7,
    )
    rows = torch.tensor([3, -1, 0])
    torch.testing.assert_close(
        stored.reordered(rows).numbers(), take(stored.numbers(), 0, rows), rtol=1e-6, atol=1e-7
    )
    with pytest.raises(ConfigError, match="in blocks of 64, and this number of ranks would cut"):
        stored.columns(Part(1, (Run(0, 96),)))


def test_saved_int8_keeps_the_scales_of_whole_rows() -> None:
    stored = StoredInt8.quantize(torch.randn(6, 256))
    part = Part(1, (Run(10, 100), Run(None, 3)))
    columns, rows = stored.columns(part), torch.tensor([5, -1])
    assert torch.equal(columns.rows(0, 6), take(stored.rows(0, 6), 1, torch.tensor(part.indices())))
    assert torch.equal(stored.reordered(rows).rows(0, 2), take(stored.rows(0, 6), 0, rows))
