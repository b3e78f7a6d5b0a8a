"""Membership: a process joins the ranks that share its model, and leaves them again."""

import contextlib
import logging
import socket
import time
from collections.abc import Iterator

import msgspec
import torch
from torch._C._distributed_c10d import Store

from tiercel.errors import ConfigError, RankLost, StartupError, with_exit_code
from tiercel.parallel.activity import Activity
from tiercel.parallel.alike import Facts, compare, encode_facts
from tiercel.parallel.group import RankGroup, open_store
from tiercel.parallel.watch import Ended, Watch, nobody_ended
from tiercel.wire.options import World
from tiercel.wire.ranks import Loss, OnLost

logger = logging.getLogger(__name__)

JOIN_S = 600.0  # machines may be started one after the other, by hand
TELL_S = 10.0
POLL_S = 0.05


class Membership:
    """A rank's watch and, once connected, its group."""

    group: RankGroup

    def __init__(self, world: World, store: Store, watch: Watch, activity: Activity) -> None:
        """See `meet`."""
        self.world = world
        self.watch = watch
        self._store = store
        self._activity = activity

    @classmethod
    def meet(
        cls,
        world: World,
        facts: Facts,
        *,
        timeout_s: float,
        on_lost: OnLost,
        ended: Ended = nobody_ended,
        listener: socket.socket | None = None,
    ) -> "Membership":
        """Wait for the others. `timeout_s`, `on_lost`, `ended`: see Watch; `listener`: open_store.

        Raises ConfigError without a store at the address and for `facts` that differ, RankLost for
        ranks that do not come, or go again.
        """
        place = f"{world.address}:{world.port}"
        try:
            store = open_store(world, JOIN_S, listener)
            beats = open_store(msgspec.structs.replace(world, hosted=True), timeout_s)
        except RuntimeError as error:
            raise ConfigError(
                f"rank {world.rank} of {world.size} cannot meet the others at {place} "
                f"({_first_line(error)}); is the port free on rank 0's machine, and can the others "
                "reach it? --master-addr and --master-port name it"
            ) from error
        try:
            store.set(f"joined/{world.rank}", encode_facts(facts))
            for rank in range(world.size):
                _wait_for(store, rank, world, ended)
            first = store.get("joined/0")
        except RuntimeError as error:
            raise RankLost(
                f"rank {world.rank} has lost the others while it waited for them at {place} "
                f"({_first_line(error)})"
            ) from error
        activity = Activity()
        watch = Watch(
            beats, world.rank, world.size, activity=activity, timeout_s=timeout_s, on_lost=on_lost,
            ended=ended,
        )  # fmt: skip
        watch.start()
        members = cls(world, store, watch, activity)
        with members.as_one():
            compare(facts, first, world.rank)
        logger.info("rank %d of %d has met the others at %s", world.rank, world.size, place)
        return members

    def connect(self, device: torch.device, *, one_shot: bool = False) -> None:
        """Make the group. `one_shot`: see OneShotSum.

        Raises ConfigError where another rank cannot be connected to.
        """
        try:
            self.group = RankGroup(
                self.world, self._store, device, self._activity, one_shot=one_shot
            )
        except RuntimeError as error:
            raise ConfigError(
                f"rank {self.world.rank} has met the others, but cannot connect to them "
                f"({_first_line(error)}); ranks open ports of the system's choice to each other: "
                "firewalls must let them, and GLOO_SOCKET_IFNAME names the interface"
            ) from error

    @contextlib.contextmanager
    def as_one(self) -> Iterator[None]:
        """What fails inside ends the group: the others are told, or have told why.

        Raises StartupError.
        """
        try:
            yield
        except StartupError as error:
            self.watch.report(self._loss_by(error.exit_code, str(error)))
            raise
        except Exception as error:
            raise self._lost(error) from error

    def close(self) -> None:
        """The group ends on purpose."""
        self.watch.stop()
        self.group.close()

    def _lost(self, error: Exception) -> StartupError:
        """What became of the group, after something failed with `error`."""
        # A collective that fails is a RuntimeError, and the fault of a rank that has gone.
        loss = self.watch.loss() if isinstance(error, RuntimeError) else None
        if loss is None:
            logger.error("this rank failed", exc_info=error)
            reason = f"{type(error).__name__}: {_first_line(error)}"
            loss = self._loss_by(RankLost.exit_code, reason)
        self.watch.report(loss)
        return with_exit_code(loss.exit_code, loss.reason)

    def _loss_by(self, exit_code: int, reason: str) -> Loss:
        return Loss(f"rank {self.world.rank} failed: {reason}", exit_code)


def _first_line(error: Exception) -> str:
    """torch's messages go on with stacks of C++."""
    return str(error).partition("\n")[0]


def _wait_for(store: Store, rank: int, world: World, ended: Ended) -> None:
    began, told = time.monotonic(), False
    while not store.check([f"joined/{rank}"]):
        if (loss := ended()) is not None:
            raise with_exit_code(loss.exit_code, loss.reason)
        waited = time.monotonic() - began
        if waited > JOIN_S:
            raise RankLost(f"rank {rank} has not come within {waited:.0f} s")
        if waited > TELL_S and not told:
            told = True
            place = f"{world.address}:{world.port}"
            logger.info("waiting for rank %d of %d at %s", rank, world.size, place)
        time.sleep(POLL_S)
