"""What the jobs of one lane may use: time, memory, bytes, processes. Frozen numbers, no logic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Defaults are for bombs: the worst job is answered after `wait_s + least_s`, 2.7 s.

    A job is too costly only if it took `cpu_s` of processor time and wants more when time is up or
    others need its place. One that got less in its time met a busy machine: that is not its fault.
    """

    cpu_s: float = 0.12  # of a processor, for every job: three times what a usual grammar takes
    run_s: float = 2.0  # from submission to answer, for a job that had `cpu_s`
    wait_s: float = 2.3  # for a child
    least_s: float = 0.4  # beyond `wait_s`, for a job that has not had `cpu_s`
    memory_bytes: int = 400 << 20  # private and writable; RSS stays below 512 MB with it
    reply_bytes: int = 1 << 20
    children: int = 2  # that the lane keeps
    max_children: int = 4  # while jobs wait
    max_waiting: int = 64  # jobs
    idle_s: float = 30.0  # after which a child beyond `children` ends
    # Until `urgent_s` of a processor, which suffice for a usual grammar, a job has this process's
    # own priority; then it is so much nicer. On a busy machine, where it gets less than half of a
    # processor, it keeps its priority until `cpu_s`: else it would hardly get there, and a good job
    # behind eight bombs waited twice as long beside four busy processes. Eight bombs at once
    # stretched a stream's gaps 1.22 and 1.28 times with `cpu_s` instead, 1.20 and 1.17 so (medians
    # of 10 and 14 rounds, in turns, two cores of an AMX Xeon; single rounds 0.8 to 1.9).
    urgent_s: float = 0.06
    nice: int = 10
    # Where the machine has become busy since, a nice job may hardly go on. After so long it makes
    # way for others that need its place, and may be tried again.
    patience_s: float = 1.0
    # Until `cpu_s` it has a turn, one of so many, so that a crowd leaves the engine its pace; a job
    # that gets less than half a processor takes nobody's place.
    turns: int = 1
    # No turn for so long behind a costly job. Eight bombs at once stretched a stream's gaps by 1.66
    # without rests and by 1.3 with them (medians of 8 rounds on two cores).
    rest_s: float = 0.09


DEFAULT_LIMITS = Limits()
