"""RankGroup: a ParallelContext over torch.distributed, and messages from rank 0 to the others.

gloo carries messages everywhere and tensors on CPUs; NCCL carries tensors on GPUs. Meeting, dying
and being late is the watch's business (`watch.py`): a collective here simply waits.
"""

import datetime
import logging
import socket
import struct
from typing import cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from tiercel.errors import ConfigError
from tiercel.parallel.activity import Activity
from tiercel.parallel.one_shot import MOST_BYTES, OneShotSum, hindrance
from tiercel.wire.options import World

logger = logging.getLogger(__name__)

# A message up to this size goes out in one piece; that of a decoding step has a few hundred bytes.
MESSAGE_BYTES = 4096
_HEADER = struct.Struct("<Q")
# Somebody may load for long while the others wait. Who is dead is found out in seconds, elsewhere.
WAIT = datetime.timedelta(hours=2)
CONNECT_S = 60.0  # all ranks are there: what has no connection by then is kept from it


def open_store(world: World, timeout_s: float, listener: socket.socket | None = None) -> Store:
    """Where the ranks of one attempt meet. Rank 0 makes it, unless somebody has.

    `listener`: where rank 0 listens, if not on all interfaces; the store takes it over. Raises
    RuntimeError if there is no store at the address within the timeout.
    """
    store = TCPStore(
        world.address,
        world.port,
        world_size=None,
        is_master=world.rank == 0 and not world.hosted,
        timeout=datetime.timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    return PrefixStore(f"tiercel/{world.attempt}", store)


class RankGroup:
    """See ParallelContext. One per process, since torch has one default group."""

    def __init__(
        self,
        world: World,
        store: Store,
        device: torch.device,
        activity: Activity,
        *,
        one_shot: bool = False,
    ) -> None:
        """All ranks are there already; a RuntimeError says which of them cannot be reached.

        gloo listens on the interface that GLOO_SOCKET_IFNAME names: see `interface_to`. `one_shot`:
        see OneShotSum.
        """
        self.rank, self.size = world.rank, world.size
        self._world, self._device, self._wants_one_shot = world, device, one_shot
        self._one_shot: OneShotSum | None = None
        self._activity = activity
        dist.init_process_group(
            "gloo",
            store=PrefixStore("gloo", store),
            rank=world.rank,
            world_size=world.size,
            timeout=datetime.timedelta(seconds=CONNECT_S),
        )
        dist.distributed_c10d._set_pg_timeout(WAIT)
        self._messages = dist.group.WORLD
        self._tensors = self._messages
        if device.type == "cuda":
            self._tensors = dist.new_group(backend="nccl", timeout=WAIT, device_id=device)
        self._buffer = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)

    def prepare(self, dtype: torch.dtype) -> None:
        """See ParallelContext: all ranks agree on how they will add up."""
        if not self._wants_one_shot:
            return
        reason = hindrance(self._world, self._device, dtype)
        if not self.smallest(reason is None):
            why = reason or "another rank cannot, as its log says"
            logger.warning("--one-shot-all-reduce has no effect: %s", why)
            return
        group = cast("dist.ProcessGroup", self._tensors)  # None: no group yet
        try:
            self._one_shot = OneShotSum(group, self._device, dtype)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConfigError(
                f"--one-shot-all-reduce: these GPUs cannot share memory ({error}); leave it out"
            ) from error
        logger.info("sums of up to %d KB take one shot, larger ones NCCL", MOST_BYTES >> 10)

    def sum_branches(self, partial: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """See ParallelContext."""
        total = partial[0]
        for branch in partial[1:]:
            total = total + branch
        total = total.contiguous()
        self._activity.entered += 1
        if self._one_shot is not None and self._one_shot.takes(total):
            return (self._one_shot(total),)
        dist.all_reduce(total, group=self._tensors)
        return (total,)

    def gather_columns(self, part: torch.Tensor, size: int) -> torch.Tensor | None:
        """See ParallelContext."""
        self._activity.entered += 1
        part = part.contiguous()
        if self.rank:
            if part.numel():
                dist.gather(part, group=self._tensors)
            return None
        if not part.numel():
            return part.new_empty(len(part), size)
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.gather(part, parts, group=self._tensors)
        return torch.cat(parts, dim=1)[:, :size]

    def share(self, values: torch.Tensor) -> torch.Tensor:
        """See ParallelContext."""
        if not values.numel():
            return values
        self._activity.entered += 1
        on_host = values.device.type == "cpu"
        dist.broadcast(values, 0, group=self._messages if on_host else self._tensors)
        return values

    def smallest(self, value: int) -> int:
        """See ParallelContext."""
        self._activity.entered += 1
        values = torch.tensor([value])
        dist.all_reduce(values, dist.ReduceOp.MIN, group=self._messages)
        return int(values)

    def everyones(self, values: tuple[int, ...]) -> list[tuple[int, ...]]:
        """See ParallelContext."""
        self._activity.entered += 1
        mine = torch.tensor(values, dtype=torch.int64)
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(theirs, mine, group=self._messages)
        return [tuple(each.tolist()) for each in theirs]

    def at_work(self) -> None:
        """See ParallelContext."""
        self._activity.other += 1

    def send(self, message: bytes) -> None:
        """From rank 0 to all others, who are in `receive` or will be."""
        self._activity.entered += 1
        data = _HEADER.pack(len(message)) + message
        first = min(len(data), MESSAGE_BYTES)
        self._buffer[:first] = torch.frombuffer(bytearray(data[:first]), dtype=torch.uint8)
        dist.broadcast(self._buffer, 0, group=self._messages)
        if len(data) > first:
            rest = torch.frombuffer(bytearray(data[first:]), dtype=torch.uint8)
            dist.broadcast(rest, 0, group=self._messages)

    def receive(self) -> bytes:
        """The next message of rank 0; waits for it."""
        self._activity.entered += 1
        dist.broadcast(self._buffer, 0, group=self._messages)
        data = self._buffer.numpy().tobytes()
        (size,) = _HEADER.unpack_from(data)
        message = data[_HEADER.size : _HEADER.size + size]
        if len(message) < size:
            rest = torch.empty(size - len(message), dtype=torch.uint8)
            dist.broadcast(rest, 0, group=self._messages)
            message += rest.numpy().tobytes()
        return message

    def close(self) -> None:
        """Give the sockets back."""
        dist.destroy_process_group()
