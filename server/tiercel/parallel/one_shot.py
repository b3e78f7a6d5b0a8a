"""OneShotSum: small sums over the GPUs of one machine, each of which reads the others' memory.

A rank puts its part where the others can see it, all meet at a barrier on the device, and each adds
up all parts by itself. No host takes part, so a CUDA graph can hold it. Others measured 4 to 6 us
for 4 KB on H100s where NCCL takes 15 to 20, and no gain above half a megabyte; a decoding step of
Falcon-7B with one row sums 9 KB, once a layer. torch's symmetric memory does the work.

No two GPUs have run it, so it is off unless --one-shot-all-reduce says otherwise.
"""

import torch
import torch.distributed as dist

from tiercel.wire.options import World

MOST_BYTES = 512 << 10
SIZES = (2, 4, 8)  # of groups that the kernel is compiled for
DTYPES = (torch.float32, torch.bfloat16)
UNIT_BYTES = 16  # what a thread moves


class OneShotSum:
    """Sums of up to MOST_BYTES of one dtype. Every rank has one; all call it at the same time."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype) -> None:
        """Collective. Raises RuntimeError where memory cannot be shared between these GPUs."""
        from torch.distributed import _symmetric_memory as symmetric  # needs a build with CUDA

        self._name = group.group_name
        self._buffer = symmetric.empty(MOST_BYTES // dtype.itemsize, dtype=dtype, device=device)
        symmetric.rendezvous(self._buffer, group)

    def takes(self, values: torch.Tensor) -> bool:
        """Whether `values` can be summed here: alike on all ranks, which have the same shapes."""
        return values.dtype == self._buffer.dtype and fits(values.nbytes)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """values: contiguous, for which `takes` holds -> their sum over all ranks, a new tensor."""
        place = self._buffer[: values.numel()].view(values.shape)
        total: torch.Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(
            place, values, "sum", self._name
        )
        return total


def fits(nbytes: int) -> bool:
    """Whether one shot is for sums of this size."""
    return 0 < nbytes <= MOST_BYTES and nbytes % UNIT_BYTES == 0


def hindrance(world: World, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these ranks cannot sum in one shot, as far as this one knows; None where it sees none."""
    if device.type != "cuda":
        return f"it takes GPUs, and this is a {device.type}"
    if world.size not in SIZES:
        return f"there are {world.size} ranks, and it takes {', '.join(map(str, SIZES))}"
    if world.local_size != world.size:
        return "the ranks are on several machines"
    if dtype not in DTYPES:
        return f"it does not add {str(dtype).removeprefix('torch.')}"
    if torch.cuda.device_count() < world.size:
        return "this rank does not see the others' GPUs"
    others = (place for place in range(world.size) if place != device.index)
    if not all(torch.cuda.can_device_access_peer(device, place) for place in others):
        return "this GPU cannot read another's memory"
    return None
