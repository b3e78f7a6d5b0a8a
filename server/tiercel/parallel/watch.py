"""Who of a group lives: signs of life and last words, beside the group's own traffic.

A collective waits for a rank that died, hangs or was cut off. So every rank says once a second in
the store that it lives, reads what the others say, and ends its process when one of them has failed
or has been silent for too long: a thread can do that while another waits in a collective.
"""

import contextlib
import datetime
import logging
import os
import threading
import time
from collections.abc import Callable

from torch._C._distributed_c10d import Store

from tiercel.errors import RankLost
from tiercel.parallel.activity import Activity
from tiercel.wire.ranks import Loss, OnLost

logger = logging.getLogger(__name__)

BEAT_S = 0.5
REASON_S = 2.5  # after a failed collective: what took the other rank away is told within this time
QUIET_S = 2.0  # when a collective has failed, a rank that is silent for so long is gone
HANGS = 6  # timeouts without any progress of a rank that others wait for; loading is slow

Ended = Callable[[], Loss | None]  # what is known otherwise of ranks that are gone


def nobody_ended() -> Loss | None:
    """For a rank that started no others."""
    return None


class Watch:
    """One rank's eye on the others. `start` it once all have joined; `stop` it before the end."""

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        activity: Activity,
        timeout_s: float,
        on_lost: OnLost,
        ended: Ended = nobody_ended,
    ) -> None:
        """`store`: a connection of its own. `on_lost` runs on a thread; then the process ends.

        `timeout_s`: how long a rank, or the store itself, may be silent. `activity`: this rank's.
        """
        self._store = store
        store.set_timeout(datetime.timedelta(seconds=timeout_s))
        self._rank, self._size = rank, size
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._ended = ended
        self._heard = dict.fromkeys((each for each in range(size) if each != rank), 0.0)
        self._beats: dict[int, str] = {}
        self._activity = activity
        self._entered = dict.fromkeys(range(size), 0)
        self._done: dict[int, str] = {}
        self._moved = dict.fromkeys(range(size), 0.0)  # when each was last seen to do anything
        self._round_s = 0.0  # when the store last answered
        self._lost: Loss | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """From now on silence counts."""
        self._round_s = time.monotonic()
        self._heard = dict.fromkeys(self._heard, self._round_s)
        self._moved = dict.fromkeys(self._moved, self._round_s)
        for run in (self._beat, self._look):
            threading.Thread(target=run, name=f"watch{run.__name__}", daemon=True).start()

    def silent_s(self, rank: int) -> float:
        """Seconds since another rank was heard. For any thread."""
        return time.monotonic() - self._heard[rank]

    def stop(self) -> None:
        """Silence does not count any more: the group ends on purpose."""
        self._stopping.set()

    def report(self, loss: Loss) -> None:
        """Tell the others why this rank ends; they end with the same code."""
        with contextlib.suppress(RuntimeError):  # nobody is there who could be told
            self._store.set(f"failed/{self._rank}", f"{loss.exit_code} {loss.reason}")

    def loss(self, wait_s: float = REASON_S) -> Loss | None:
        """Why the group is lost, if that becomes known in time; else who has fallen silent."""
        deadline = time.monotonic() + wait_s
        while self._lost is None and time.monotonic() < deadline:
            time.sleep(0.05)
            self._lost = self._lost or self._ended()
        return self._lost or _lost(self._silent(time.monotonic(), QUIET_S))

    def _beat(self) -> None:
        """Say and hear. Waits for ever when the store is out of reach: `_look` sees that."""
        number = 0
        while not self._stopping.wait(BEAT_S):
            number += 1
            try:
                self._store.set(f"beat/{self._rank}", f"{number} {self._activity}")
                self._see(self._rank, str(self._activity))
                for rank in self._heard:
                    self._hear(rank)
            except RuntimeError:  # gone, or too late: no round is done
                continue
            self._round_s = time.monotonic()

    def _hear(self, rank: int) -> None:
        failed = f"failed/{rank}"
        if self._store.check([failed]):
            code, _, reason = self._store.get(failed).decode().partition(" ")
            self._lost = self._lost or Loss(reason, int(code))
        beat = self._store.get(f"beat/{rank}").decode()
        if beat != self._beats.get(rank):
            self._beats[rank] = beat
            self._heard[rank] = time.monotonic()
            self._see(rank, beat.partition(" ")[2])

    def _see(self, rank: int, done: str) -> None:
        if done != self._done.get(rank):
            self._done[rank] = done
            self._entered[rank] = int(done.partition(" ")[0])
            self._moved[rank] = time.monotonic()

    def _look(self) -> None:
        before = time.monotonic()
        while not self._stopping.wait(BEAT_S):
            now = time.monotonic()
            if now - before > 2 * BEAT_S + 1:  # this process was stopped itself: hear first
                gap = now - before
                self._round_s += gap
                self._heard = {rank: heard + gap for rank, heard in self._heard.items()}
                self._moved = {rank: moved + gap for rank, moved in self._moved.items()}
            before = now
            silent = self._silent(now, self._timeout_s)
            loss = self._lost or self._ended() or _lost(silent or self._hanging(now))
            if loss is not None and not self._stopping.is_set():
                self._end(loss)
                return

    def _silent(self, now: float, limit_s: float) -> str | None:
        # Who fell silent while the others were still heard took them along: rank 0 ends with it.
        rank, heard = min(self._heard.items(), key=lambda item: item[1])
        if now - heard > limit_s and self._round_s - heard > 2 * BEAT_S:
            return f"rank {rank} has not been heard for {now - heard:.0f} s"
        if now - self._round_s > limit_s:
            return (
                f"rank {self._rank} has not reached the others for {now - self._round_s:.0f} s: "
                "rank 0's machine or the network is gone"
            )
        for rank, heard in self._heard.items():
            if now - heard > limit_s:
                return f"rank {rank} has not been heard for {now - heard:.0f} s"
        return None

    def _hanging(self, now: float) -> str | None:
        """A rank that does nothing outside of the collective in which another waits for it.

        The first one is its server's business, which may well keep it waiting.
        """
        most = max(self._entered.values())
        for rank in range(1, self._size):
            idle_s = now - self._moved[rank]
            if self._entered[rank] < most and idle_s > HANGS * self._timeout_s:
                return f"rank {rank} hangs: the others have waited for it for {idle_s:.0f} s"
        return None

    def _end(self, loss: Loss) -> None:
        self._lost = loss
        logger.error("%s; this rank ends with exit code %d", loss.reason, loss.exit_code)
        self._on_lost(loss)
        os._exit(loss.exit_code)


def _lost(reason: str | None) -> Loss | None:
    return None if reason is None else Loss(reason, RankLost.exit_code)
