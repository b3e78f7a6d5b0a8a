"""The size of the KV cache, and the limits a container sets."""

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tiercel.errors import ConfigError, OutOfMemory, StartupError, StepOutOfMemory
from tiercel.worker.machine import cores, free_bytes
from tiercel.worker.memory import CacheSize, cache_size, out_of_memory


def size(**changes: Any) -> CacheSize:
    given = {
        "bytes_per_block": 1000,
        "block_tokens": 16,
        "cache_bytes": 800_000,
        "max_rows": 4,
        "max_total_tokens": 100,
        "wanted_tokens": None,
    }
    return cache_size(**(given | changes))


def test_enough_for_all_rows_if_there_is_room() -> None:
    assert size() == CacheSize(num_blocks=4 * 7, max_total_tokens=100)


def test_no_more_than_the_memory_there_is() -> None:
    assert size(max_rows=1000).num_blocks == 800


def test_the_flag_decides_and_is_rounded_down_to_blocks() -> None:
    assert size(wanted_tokens=170) == CacheSize(10, 100)


def test_a_small_pool_shortens_the_longest_sequence() -> None:
    assert size(wanted_tokens=80) == CacheSize(5, 80)
    assert size(cache_bytes=5000) == CacheSize(5, 80)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"wanted_tokens": 16_000}, OutOfMemory, "--max-batch-total-tokens 16000 needs 0.00 GB"),
        ({"wanted_tokens": 20}, ConfigError, "--max-batch-total-tokens 20 is less than 64; raise"),
        ({"cache_bytes": 1600}, OutOfMemory, "the cache would hold 16 tokens, fewer than 64"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(
    changes: dict[str, Any], error: type[StartupError], message: str
) -> None:
    with pytest.raises(error, match=message):
        size(**changes)


NO_MEMORY = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried"),
    torch.AcceleratorError(
        "CUDA error: out of memory\nCUDA kernel errors might be"
    ),  # pinned, graph
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
)
SOMETHING_ELSE = (
    "shapes do not fit",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "Triton Error [CUDA]: device kernel image is invalid",
    "a request said: CUDA error: out of memory",
)


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:40])
def test_want_of_memory_is_recognised(error: Exception) -> None:
    with pytest.raises(StepOutOfMemory) as refused, out_of_memory():
        raise error
    assert str(refused.value) and "\n" not in str(refused.value)
    assert refused.value.__cause__ is error


@pytest.mark.parametrize("says", SOMETHING_ELSE)
def test_nothing_else_is_taken_for_it(says: str) -> None:
    with pytest.raises(RuntimeError) as raised, out_of_memory():
        raise RuntimeError(says)
    assert not isinstance(raised.value, StepOutOfMemory)


def test_what_the_allocator_keeps_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(None))
    for error in NO_MEMORY:
        with pytest.raises(StepOutOfMemory), out_of_memory():
            raise error
    assert len(given) == len(NO_MEMORY) - 2  # all but the host's own


def test_free_memory_is_what_the_container_leaves(tmp_path: Path) -> None:
    root = tmp_path
    (root / "memory.max").write_text("1000000\n")
    (root / "memory.current").write_text("400000\n")
    (root / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert free_bytes(root) == 650_000
    (root / "memory.current").write_text("2000000\n")
    assert free_bytes(root) == 0
    (root / "memory.max").write_text("max\n")
    assert free_bytes(root) > 1_000_000


def test_free_memory_in_version_1_groups(tmp_path: Path) -> None:
    root = tmp_path / "memory"
    root.mkdir()
    (root / "memory.limit_in_bytes").write_text("900000")
    (root / "memory.usage_in_bytes").write_text("300000")
    assert free_bytes(tmp_path) == 600_000
    (root / "memory.limit_in_bytes").write_text(str(1 << 62))
    assert free_bytes(tmp_path) <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1)]
)
def test_cores_follow_the_quota(tmp_path: Path, quota: str, expected: int | None) -> None:
    unlimited = cores(tmp_path)
    assert unlimited >= 1
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert cores(tmp_path) == (unlimited if expected is None else expected)
