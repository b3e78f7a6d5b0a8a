"""What a launcher asks about a device: its compute capability and how many processors it has."""

import functools

import torch

from tiercel_kernels.tuning.cards import SHARED_KIB, stand_in

_INTERPRETED_PROCESSORS = 3  # few, so that programs of a persistent grid take several items each


@functools.cache
def capability(device: torch.device) -> int:
    """80 for 8.0; of the interpreter, 90. A card that is not known goes as one that is."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    properties = torch.cuda.get_device_properties(device)
    # What one block may ask for; torch does not say it in every version.
    shared = getattr(properties, "shared_memory_per_block_optin", 1024 * min(SHARED_KIB.values()))
    return stand_in(10 * major + minor, shared // 1024)


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors."""
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def bytes_per_number(tensor: torch.Tensor) -> int:
    """By which a variant is chosen; 2 in the interpreter, so that it runs the tiles of serving."""
    return tensor.element_size() if tensor.is_cuda else 2
