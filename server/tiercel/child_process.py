"""What every child process does first: leave signals to its parent and end when the parent ends."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, exit_code: int) -> None:
    """Signals are the parent's to handle, wherever they are sent; its death is ours as well.

    `parent` is the process id that the parent gave as its own: if it has died already, this process
    exits with `exit_code`. The system watches the thread that started the child, not the process.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(exit_code)
