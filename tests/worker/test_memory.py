"""The size of the KV cache, and the limits a container sets."""

from pathlib import Path
from typing import Any

import psutil
import pytest

from tiercel.errors import OutOfMemory
from tiercel.worker.machine import cores, free_bytes
from tiercel.worker.memory import CacheSize, cache_size


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
    ("changes", "message"),
    [
        ({"wanted_tokens": 16_000}, r"--max-batch-total-tokens 16000 needs 0.00 GB"),
        ({"wanted_tokens": 20}, r"--max-batch-total-tokens 20 is less than 64; raise it"),
        ({"cache_bytes": 1600}, r"the cache would hold 16 tokens, fewer than 64"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OutOfMemory, match=message):
        size(**changes)


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
