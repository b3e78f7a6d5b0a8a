"""Watches over a real store, in one process: what they make of the others' counts."""

import threading
from collections.abc import Iterator

import pytest

from tiercel.parallel import watch as watching
from tiercel.parallel.activity import Activity
from tiercel.parallel.group import open_store
from tiercel.parallel.launch import local_world
from tiercel.parallel.watch import Watch
from tiercel.wire.options import World
from tiercel.wire.ranks import Loss

TIMEOUT_S = 6.0  # of beats, on a busy machine
HANGS_S = 2.0


class Pair:
    """Two ranks of a process that survives their end."""

    def __init__(self) -> None:
        world, listener = local_world(2)
        worlds = [world, World(1, 2, 1, 2, world.address, world.port)]
        self.store = open_store(world, 10.0, listener)
        self.activities = [Activity(), Activity()]
        self.losses: list[list[Loss]] = [[], []]
        self.lost = threading.Event()
        self.watches = [self._watch(each) for each in worlds]

    def _watch(self, world: World) -> Watch:
        theirs = World(world.rank, 2, 0, 2, world.address, world.port, hosted=True)

        def on_lost(loss: Loss) -> None:
            self.losses[world.rank].append(loss)
            self.lost.set()

        return Watch(
            open_store(theirs, TIMEOUT_S), world.rank, 2, activity=self.activities[world.rank],
            timeout_s=TIMEOUT_S, on_lost=on_lost,
        )  # fmt: skip


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(watching.os, "_exit", lambda _: None)
    monkeypatch.setattr(watching, "HANGS", HANGS_S / TIMEOUT_S)
    made = Pair()
    for each in made.watches:
        each.start()
    yield made
    for each in made.watches:
        each.stop()
    threads = [each for each in threading.enumerate() if each.name.startswith("watch_")]
    for thread in threads:
        thread.join(10.0)


def test_a_rank_that_keeps_the_others_waiting_hangs(pair: Pair) -> None:
    """Its process beats all the time."""
    pair.activities[0].entered, pair.activities[1].entered = 5, 4
    assert pair.lost.wait(20.0)
    (loss,) = pair.losses[0] or pair.losses[1]
    assert loss.reason.startswith("rank 1 hangs: the others have waited for it for")
    assert loss.exit_code == 6


def test_who_fell_silent_first_is_named_though_the_store_went_too() -> None:
    """Rank 0, where the store is, ends when it has lost rank 2; rank 1 may see both at once."""
    world, listener = local_world(3)
    store = open_store(world, 10.0, listener)
    watch = Watch(store, 1, 3, activity=Activity(), timeout_s=TIMEOUT_S, on_lost=lambda loss: None)
    watch._round_s, watch._heard = 18.0, {0: 18.0, 2: 15.0}
    assert watch._silent(30.0, TIMEOUT_S) == "rank 2 has not been heard for 15 s"
    watch._heard = {0: 18.0, 2: 17.6}  # both within a beat of the store's end
    assert str(watch._silent(30.0, TIMEOUT_S)).startswith(
        "rank 1 has not reached the others for 12"
    )


def test_a_rank_that_works_for_long_does_not(pair: Pair) -> None:
    """As while it loads: the others wait in a collective, and it shows that it reads on."""
    pair.activities[0].entered = 1
    for _ in range(8):
        pair.activities[1].other += 1
        assert not pair.lost.wait(HANGS_S / 4)


def test_ranks_that_wait_together_do_not(pair: Pair) -> None:
    assert not pair.lost.wait(2 * HANGS_S)


def test_a_report_reaches_the_other(pair: Pair) -> None:
    pair.watches[1].report(Loss("rank 1 failed: no reason", 3))
    assert pair.watches[0].loss(10.0) == Loss("rank 1 failed: no reason", 3)
