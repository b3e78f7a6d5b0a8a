"""What this process may use of the machine: cores and free memory, container limits included."""

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def cores(root: Path = CGROUP) -> int:
    """Cores this process may run on, not more than its CPU quota (rounded down); at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cpu_quota(root)
    return max(1, min(allowed or 1, int(quota)) if quota else allowed or 1)


def free_bytes(root: Path = CGROUP) -> int:
    """Memory that can still be taken without swapping and without reaching a container's limit."""
    available = _available()
    limit = _number(root / "memory.max")  # version 2
    used = _number(root / "memory.current")
    reclaimable = _stat(root / "memory.stat", "inactive_file")
    if limit is None:  # version 1
        limit = _number(root / "memory/memory.limit_in_bytes")
        used = _number(root / "memory/memory.usage_in_bytes")
        reclaimable = _stat(root / "memory/memory.stat", "total_inactive_file")
    if limit is None or used is None:
        return available
    return max(0, min(available, limit - used + reclaimable))


def _available() -> int:
    """The kernel's estimate; on other systems the pages nobody uses."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _cpu_quota(root: Path) -> float | None:
    """Cores' worth of time per period, or None where nothing limits it."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota_us, period_us = (
            _number(root / "cpu/cpu.cfs_quota_us"),
            _number(root / "cpu/cpu.cfs_period_us"),
        )
        return quota_us / period_us if quota_us and quota_us > 0 and period_us else None
    return None if quota == "max" else int(quota) / int(period)


def _number(path: Path) -> int | None:
    """The file's only number; None if there is no such file, or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _stat(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name + " ")), 0)
