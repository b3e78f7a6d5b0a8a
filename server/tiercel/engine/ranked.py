"""The first of several ranks: it starts those of its machine and tells all what it runs."""

import contextlib
import time
from collections.abc import Callable

import msgspec

from tiercel.parallel.launch import LocalRanks, local_world
from tiercel.parallel.membership import Membership
from tiercel.parallel.preflight import check_machine, gpus
from tiercel.parallel.watch import BEAT_S
from tiercel.wire.options import EngineOptions
from tiercel.wire.ranks import Idle, OnLost, RankMessage, RunStep, Stop, encode
from tiercel.wire.step import StepOutput, StepPlan
from tiercel.worker.platform import make_platform
from tiercel.worker.worker import Worker


class RankedExecutor:
    """See Executor. A step that fails on one rank ends the group: the ranks are no longer alike."""

    def __init__(self, worker: Worker, members: Membership, children: LocalRanks) -> None:
        """`children`: those of the other ranks that this process has started."""
        self._worker = worker
        self._members = members
        self._children = children
        self._sent_s = 0.0

    @property
    def depth(self) -> int:
        """See Executor."""
        return self._worker.depth

    def submit(self, plan: StepPlan) -> None:
        """See Executor. Raises RankLost."""
        starts = [msgspec.structs.replace(each, grammar=None) for each in plan.starts]
        try:
            self._send(RunStep(msgspec.structs.replace(plan, starts=starts)))
            self._worker.submit(plan)
        except Exception as error:
            raise self._members.lost(error) from error

    def collect(self) -> StepOutput:
        """See Executor. Raises RankLost."""
        try:
            return self._worker.collect()
        except Exception as error:
            raise self._members.lost(error) from error

    def idle(self) -> None:
        """See Executor. Raises RankLost."""
        if time.monotonic() - self._sent_s < BEAT_S:
            return
        try:
            self._send(Idle())
        except Exception as error:
            raise self._members.lost(error) from error

    def close(self) -> None:
        """The group ends on purpose."""
        self._members.watch.stop()
        with contextlib.suppress(RuntimeError):  # whoever is gone needs no word
            self._send(Stop())
        self._children.stop()
        with contextlib.suppress(RuntimeError):
            self._members.close()

    def _send(self, message: RankMessage) -> None:
        self._sent_s = time.monotonic()
        self._members.group.send(encode(message))


def first_worker(
    options: EngineOptions, on_lost: OnLost
) -> tuple[Worker, Callable[[], RankedExecutor]]:
    """Rank 0's worker, not loaded yet, and what runs it once it is warm.

    Without a world of others' making, `num_shard` ranks of this machine are started. `on_lost`
    gets the reason when the group is given up. Raises StartupError.
    """
    children = LocalRanks()
    world = options.world
    if world is None:
        world = local_world(options.num_shard or gpus(), options.rendezvous_port)
        check_machine(options, world)
        children.start(options, world)
    platform = make_platform(options, place=world.local_rank, neighbours=world.local_size)
    members = Membership.join(
        world,
        platform.device,
        timeout_s=options.rank_timeout_s,
        on_lost=on_lost,
        ended=children.ended,
    )
    worker = Worker(options, platform, ranks=members.group)
    return worker, lambda: RankedExecutor(worker, members, children)
