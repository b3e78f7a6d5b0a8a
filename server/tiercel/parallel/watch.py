"""Who of a group lives: signs of life and last words, beside the group's own traffic.

A collective waits for a rank that died, hangs or was cut off. So every rank says once a second in
the store that it lives, reads what the others say, and ends its process when one of them has failed
or has been silent for too long: a thread can do that while another waits in a collective.
"""

import datetime
import logging
import os
import threading
import time
from collections.abc import Callable

from torch._C._distributed_c10d import Store

from tiercel.errors import RankLost
from tiercel.wire.ranks import Loss, OnLost

logger = logging.getLogger(__name__)

BEAT_S = 0.5
REASON_S = 2.0  # after a failed collective: what took the other rank away is told within this time

Ended = Callable[[], str | None]  # what is known otherwise of ranks that are gone


def nobody_ended() -> str | None:
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
        timeout_s: float,
        on_lost: OnLost,
        ended: Ended = nobody_ended,
    ) -> None:
        """`store`: a connection of its own. `on_lost` runs on a thread; then the process ends.

        `timeout_s`: how long a rank, or the store itself, may be silent.
        """
        self._store = store
        store.set_timeout(datetime.timedelta(seconds=timeout_s))
        self._rank, self._size = rank, size
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._ended = ended
        self._heard = dict.fromkeys((each for each in range(size) if each != rank), 0.0)
        self._beats: dict[int, int] = {}
        self._round_s = 0.0  # when the store last answered
        self._lost: Loss | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """From now on silence counts."""
        self._round_s = time.monotonic()
        self._heard = dict.fromkeys(self._heard, self._round_s)
        for run in (self._beat, self._look):
            threading.Thread(target=run, name=f"watch{run.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Silence does not count any more: the group ends on purpose."""
        self._stopping.set()

    def report(self, reason: str, exit_code: int = RankLost.exit_code) -> None:
        """Tell the others why this rank ends; they end with the same code."""
        self._store.set(f"failed/{self._rank}", f"{exit_code} {reason}")

    def loss(self, wait_s: float = REASON_S) -> Loss | None:
        """Why the group is lost, if that becomes known in time."""
        deadline = time.monotonic() + wait_s
        while self._lost is None and time.monotonic() < deadline:
            time.sleep(0.05)
            self._lost = self._lost or _loss(self._ended())
        return self._lost

    def _beat(self) -> None:
        """Say and hear. Waits for ever when the store is out of reach: `_look` sees that."""
        number = 0
        while not self._stopping.wait(BEAT_S):
            number += 1
            try:
                self._store.set(f"beat/{self._rank}", str(number))
                for rank in self._heard:
                    self._hear(rank)
            except RuntimeError:  # gone, or too late: no round is done
                continue
            self._round_s = time.monotonic()

    def _hear(self, rank: int) -> None:
        failed = f"failed/{rank}"
        if self._store.check([failed]):
            code, _, reason = self._store.get(failed).decode().partition(" ")
            self._lost = Loss(f"rank {rank} failed: {reason}", int(code))
        beat = int(self._store.get(f"beat/{rank}"))
        if beat != self._beats.get(rank):
            self._beats[rank] = beat
            self._heard[rank] = time.monotonic()

    def _look(self) -> None:
        before = time.monotonic()
        while not self._stopping.wait(BEAT_S):
            now = time.monotonic()
            if now - before > 2 * BEAT_S + 1:  # this process was stopped itself: hear first
                gap = now - before
                self._round_s += gap
                self._heard = {rank: heard + gap for rank, heard in self._heard.items()}
            before = now
            loss = self._lost or _loss(self._ended() or self._silent(now))
            if loss is not None and not self._stopping.is_set():
                self._end(loss)
                return

    def _silent(self, now: float) -> str | None:
        if now - self._round_s > self._timeout_s:
            return (
                f"rank {self._rank} has not reached the others for {now - self._round_s:.0f} s: "
                "rank 0's machine or the network is gone"
            )
        for rank, heard in self._heard.items():
            if now - heard > self._timeout_s:
                return f"rank {rank} has not been heard for {now - heard:.0f} s"
        return None

    def _end(self, loss: Loss) -> None:
        self._lost = loss
        logger.error("%s; this rank ends with exit code %d", loss.reason, loss.exit_code)
        self._on_lost(loss)
        os._exit(loss.exit_code)


def _loss(reason: str | None) -> Loss | None:
    return None if reason is None else Loss(reason, RankLost.exit_code)
