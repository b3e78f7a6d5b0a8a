"""What a figure depends on: the card, its clocks and power cap, versions, the commit."""

import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_SMI_FIELDS = (
    "driver_version",
    "clocks.max.sm",
    "clocks.max.memory",
    "clocks.sm",
    "power.limit",
    "temperature.gpu",
)
_ROOT = Path(__file__).parents[3]


def describe(device: torch.device) -> dict[str, Any]:
    """Name, sizes, clocks where nvidia-smi tells them, versions, date (UTC) and commit."""
    facts: dict[str, Any] = {"name": device_name(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(l2_bytes(device) / 2**20, 1),
            "cuda": torch.version.cuda,
        }
        facts |= _smi(str(getattr(properties, "uuid", "")))
    facts |= {name: _version(name) for name in ("torch", "triton", "transformers")}
    facts["python"] = platform.python_version()
    facts["date"] = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    facts["commit"] = commit()
    return facts


def device_name(device: torch.device) -> str:
    """As the driver gives it; of a CPU its architecture."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu {platform.machine()}"


def folder_name(name: str) -> str:
    """A device's name as the name of its folder of results."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def l2_bytes(device: torch.device) -> int:
    """Of the last cache in front of memory; of anything but a GPU, 0."""
    if device.type != "cuda":
        return 0
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "L2_cache_size", 0)) or 50 * 2**20


def free_bytes(device: torch.device) -> int:
    """Memory that inputs may take, caches of the allocator included; of a CPU, 1 GiB."""
    if device.type != "cuda":
        return 1 << 30
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + cached)


def commit() -> str:
    """The commit of this checkout, with a + where files differ from it; "unknown" without git."""
    try:
        head = _output(["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"])
        changed = _output(["git", "-C", str(_ROOT), "status", "--porcelain", "-uno"])
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changed else "")


def _smi(uuid: str) -> dict[str, str]:
    """What nvidia-smi says of this card; nothing where it is not there or says nothing."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader"]
    if uuid:
        command.append(f"--id=GPU-{uuid.removeprefix('GPU-')}")
    try:
        line = _output(command).splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return dict(zip(_SMI_FIELDS, (each.strip() for each in line.split(",")), strict=False))


def _output(command: list[str]) -> str:
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    return run.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
