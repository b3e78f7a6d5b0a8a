"""The first of several ranks: it starts those of its machine and tells all what it runs."""

import contextlib
import time

import msgspec

from tiercel.parallel.alike import facts_of
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
        self.worker = worker  # loaded and warmed up by whoever wants its limits
        self._members = members
        self._children = children
        self._sent_s = 0.0

    @classmethod
    def join(cls, options: EngineOptions, on_lost: OnLost) -> "RankedExecutor":
        """With a worker that is not loaded yet.

        Without a world of others' making, `num_shard` ranks of this machine are started. `on_lost`
        gets the reason when the group is given up. Raises StartupError.
        """
        children, world, listener = LocalRanks(), options.world, None
        with contextlib.ExitStack() as until_met:
            if world is None:
                ranks = options.num_shard or gpus()
                world, listener = local_world(ranks, options.rendezvous_port)
                until_met.enter_context(listener)
                check_machine(options, world)
                children.start(options, world)
            members = Membership.meet(
                world,
                facts_of(options),
                timeout_s=options.rank_timeout_s,
                on_lost=on_lost,
                ended=children.ended,
                listener=listener,
            )
        with members.as_one():
            if listener is None and world.local_rank == 0:
                check_machine(options, world)
            platform = make_platform(options, place=world.local_rank, neighbours=world.local_size)
            members.connect(platform.device, one_shot=options.one_shot_all_reduce)
        return cls(Worker(options, platform, ranks=members.group), members, children)

    def as_one(self) -> "contextlib.AbstractContextManager[None]":
        """See Membership."""
        return self._members.as_one()

    def silent_s(self) -> list[float]:
        """Seconds since each of the other ranks was heard, from rank 1 on. For any thread."""
        members = self._members
        return [members.watch.silent_s(rank) for rank in range(1, members.world.size)]

    @property
    def depth(self) -> int:
        """See Executor."""
        return self.worker.depth

    def submit(self, plan: StepPlan) -> None:
        """See Executor. Raises StartupError."""
        starts = [msgspec.structs.replace(each, grammar=None) for each in plan.starts]
        with self.as_one():
            self._send(RunStep(msgspec.structs.replace(plan, starts=starts)))
            self.worker.submit(plan)

    def collect(self) -> StepOutput:
        """See Executor. Raises StartupError."""
        with self.as_one():
            return self.worker.collect()

    def idle(self) -> None:
        """See Executor. Raises StartupError."""
        if time.monotonic() - self._sent_s >= BEAT_S:
            with self.as_one():
                self._send(Idle())

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
