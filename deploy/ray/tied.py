"""Runs a command that ends with its parent: `python tied.py PARENT COMMAND...`.

`PARENT` is the parent's process id. Whatever ends the parent, SIGKILL included, ends the command.
The system watches the thread that started this process, so that has to be one that lasts.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Become the command. Exits with 1 if the parent has died already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 (the signal stays set across it)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
