"""What a process has read and how large it has been, from /proc. Linux only."""

from pathlib import Path

_KB = 1024


def forget_peak(pid: int) -> None:
    """The peak of the resident set starts again from what it is now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def resident_bytes(pid: int) -> int:
    return _status(pid, "VmRSS") * _KB


def peak_bytes(pid: int) -> int:
    """The largest resident set since the start or `forget_peak`."""
    return _status(pid, "VmHWM") * _KB


def read_bytes(pid: int) -> int:
    """All bytes that read calls have returned to the process, sockets included."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise AssertionError("no rchar in /proc/PID/io")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"no {name} in /proc/PID/status")
