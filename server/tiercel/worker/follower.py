"""A rank other than the first: `python -P -m tiercel.worker.follower PARENT_PID < OPTIONS`.

It serves nobody. It loads its share of the model, does what the first rank does, and ends with it.
"""

import gc
import logging
import os
import signal
import sys
import time

import msgspec

from tiercel.child_process import end_with_parent
from tiercel.errors import ConfigError, EngineDied, StartupError
from tiercel.model.progress import ByteLines
from tiercel.parallel.alike import facts_of
from tiercel.parallel.membership import Membership
from tiercel.parallel.preflight import check_machine
from tiercel.telemetry.logs import configure_logging
from tiercel.wire.options import EngineOptions
from tiercel.wire.ranks import RunStep, Stop, decode
from tiercel.worker.platform import Platform, make_platform
from tiercel.worker.worker import Worker

logger = logging.getLogger(__name__)


def follow(options: EngineOptions, platform: Platform | None = None) -> int:
    """Run one rank to the end of its group; returns the exit code. Raises StartupError.

    `platform`: the one that options.device names, unless it is given.
    """
    world = options.world
    if world is None:
        raise ConfigError("a rank needs to know the others")
    members = Membership.meet(
        world, facts_of(options), timeout_s=options.rank_timeout_s, on_lost=lambda _: None
    )
    signal.signal(signal.SIGTERM, _stop_later)
    with members.as_one():
        if world.local_rank == 0:
            check_machine(options, world)
        if platform is None:
            platform = make_platform(options, place=world.local_rank, neighbours=world.local_size)
        members.connect(platform.device, one_shot=options.one_shot_all_reduce)
        worker = Worker(options, platform, ranks=members.group)
        began = time.monotonic()
        worker.load(ByteLines("loading its part of the checkpoint", logger.info))
        logger.info(
            "holds %.1f MB of weights, loaded in %.1f s",
            worker.weights_bytes / 1e6,
            time.monotonic() - began,
        )
        worker.allocate()
        worker.warmup()
        gc.collect()
        gc.freeze()  # as in engine/process.py: the others would wait for this rank's collections
        _run(worker, members)
    members.close()
    return 0


def _stop_later(*_: object) -> None:
    """An orchestrator signals all ranks at once; the first one drains, and tells when it has."""
    logger.info("this rank ends when the first has drained")


def _run(worker: Worker, members: Membership) -> None:
    """Steps as they are told, until the group ends."""
    out = 0
    while not isinstance(message := decode(members.group.receive()), Stop):
        if isinstance(message, RunStep):
            worker.submit(message.plan)
            out += 1
        while out and (out == worker.depth or not isinstance(message, RunStep)):
            worker.collect()
            out -= 1


def main(parent: int) -> int:
    """One rank beside the first on its machine; returns the exit code."""
    end_with_parent(parent, EngineDied.exit_code)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's word, until the others are met
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineOptions)
    rank = None if options.world is None else options.world.rank
    configure_logging(options.log_level, options.log_json, rank)
    try:
        return follow(options)
    except StartupError as error:
        logger.error("%s; this rank ends with exit code %d", error, error.exit_code)
        return error.exit_code


if __name__ == "__main__":
    code = main(int(sys.argv[1]))
    # Skips the teardown of threads and libraries that may hang on a sick device.
    sys.stderr.flush()
    os._exit(code)
