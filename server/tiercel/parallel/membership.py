"""Membership: a process joins the ranks that share its model, and leaves them again."""

import logging
import time

import msgspec
import torch
from torch._C._distributed_c10d import Store

from tiercel.errors import ConfigError, RankLost, StartupError, with_exit_code
from tiercel.parallel.group import RankGroup, open_store
from tiercel.parallel.watch import Ended, Watch, nobody_ended
from tiercel.wire.options import World
from tiercel.wire.ranks import OnLost

logger = logging.getLogger(__name__)

JOIN_S = 600.0  # machines may be started one after the other, by hand
TELL_S = 10.0
POLL_S = 0.05


class Membership:
    """A rank's group and its watch. What the others should know of its end it tells them itself."""

    def __init__(self, world: World, group: RankGroup, watch: Watch) -> None:
        self.world = world
        self.group = group
        self.watch = watch

    @classmethod
    def join(
        cls,
        world: World,
        device: torch.device,
        *,
        timeout_s: float,
        on_lost: OnLost,
        ended: Ended = nobody_ended,
    ) -> "Membership":
        """Wait for the others. `timeout_s`, `on_lost`, `ended`: see Watch.

        Raises ConfigError without a store at the address, RankLost for ranks that do not come.
        """
        place = f"{world.address}:{world.port}"
        try:
            store = open_store(world, JOIN_S)
            beats = open_store(msgspec.structs.replace(world, hosted=True), timeout_s)
        except RuntimeError as error:
            raise ConfigError(
                f"rank {world.rank} of {world.size} cannot meet the others at {place} "
                f"({str(error).partition(chr(10))[0]}); is the port free on rank 0's machine, and "
                "can the others reach it? --master-addr and --master-port name it"
            ) from error
        store.set(f"joined/{world.rank}", "")
        for rank in range(world.size):
            _wait_for(store, rank, world, ended)
        watch = Watch(
            beats, world.rank, world.size, timeout_s=timeout_s, on_lost=on_lost, ended=ended
        )
        watch.start()
        logger.info("rank %d of %d has joined the others at %s", world.rank, world.size, place)
        return cls(world, RankGroup(world, store, device), watch)

    def lost(self, error: Exception) -> StartupError:
        """What became of the group, after a collective failed with `error`."""
        loss = self.watch.loss()
        if loss is None:
            reason = f"a step failed on rank {self.world.rank}: {type(error).__name__}: {error}"
            return RankLost(reason.partition("\n")[0])
        return with_exit_code(loss.exit_code, loss.reason)

    def close(self) -> None:
        """The group ends on purpose."""
        self.watch.stop()
        self.group.close()


def _wait_for(store: Store, rank: int, world: World, ended: Ended) -> None:
    began, told = time.monotonic(), False
    while not store.check([f"joined/{rank}"]):
        if (reason := ended()) is not None:
            raise RankLost(reason)
        waited = time.monotonic() - began
        if waited > JOIN_S:
            raise RankLost(f"rank {rank} has not come within {waited:.0f} s")
        if waited > TELL_S and not told:
            told = True
            place = f"{world.address}:{world.port}"
            logger.info("waiting for rank %d of %d at %s", rank, world.size, place)
        time.sleep(POLL_S)
