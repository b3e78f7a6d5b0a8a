"""What the jobs of one lane may use: time, memory, bytes, processes. Frozen numbers, no logic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Defaults are for bombs: the worst job is answered after `wait_s + contended_s`, 2.7 s."""

    run_s: float = 2.0  # from submission to answer, but at least `contended_s` of it in a child
    contended_s: float = 0.4  # in a child, while another job waits for one
    wait_s: float = 2.3  # for a child
    memory_bytes: int = 400 << 20  # private and writable; RSS stays below 512 MB with it
    reply_bytes: int = 1 << 20
    children: int = 2  # that the lane keeps
    max_children: int = 4  # while jobs wait
    max_waiting: int = 64  # jobs
    idle_s: float = 30.0  # after which a child beyond `children` ends
    nice: int = 10  # bombs leave the engine its pace, good jobs finish on a busy machine too


DEFAULT_LIMITS = Limits()
