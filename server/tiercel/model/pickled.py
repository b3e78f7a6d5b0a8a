"""Reads PyTorch's pickled checkpoints for conversion, with weights_only: nothing in them ever runs.

The serving process never imports this module.
"""

import pickle
import re
import struct
import warnings
from pathlib import Path

import torch

from tiercel.errors import WeightsError
from tiercel.foreign_files import BadFile, check_inside, open_regular, read_object, shown
from tiercel.model.safetensors_file import INDEX_LIMIT_BYTES, NO_WEIGHTS, weights_error

INDEX_NAME = "pytorch_model.bin.index.json"
# What torch.load raises for files that are cut off, scrambled or made with intent.
BROKEN = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError,
    TypeError, AttributeError, AssertionError, MemoryError, OverflowError, RecursionError,
    struct.error,
)  # fmt: skip
# How torch.load says that a file names something other than tensors, and what.
REFUSED = re.compile(
    r"(?:nsupported (?:global: )?GLOBAL|unrecognized function|object for class) (\S+)"
)


def pickle_files(folder: Path) -> list[Path]:
    """Return the weight files of `folder`, in the order of their names. Raises WeightsError."""
    index = folder / INDEX_NAME
    if not index.exists():
        files = [
            path
            for path in sorted(folder.glob("*.bin"))
            if not any(word in path.name for word in (*NO_WEIGHTS, "optimizer", "scheduler"))
        ]
        if not files:
            raise weights_error(
                folder, "holds no .bin weights", "give the folder that holds pytorch_model*.bin"
            )
        return files
    try:
        weight_map = read_object(index, INDEX_LIMIT_BYTES).get("weight_map")
    except BadFile as bad:
        raise weights_error(index, bad) from bad
    if not isinstance(weight_map, dict) or not weight_map:
        raise weights_error(index, "has no weight_map object")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.bin", name):
            raise weights_error(index, f"names {shown(name)}, which is not a plain .bin file name")
    return [folder / name for name in names]


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one file, mapped and not copied where the format allows it.

    Raises WeightsError for a file that holds anything but tensors by name; it is then not run.
    """
    try:
        check_inside(path.parent, path)
        with open_regular(path) as file:
            zipped = file.read(4) == b"PK\x03\x04"
    except BadFile as bad:
        raise weights_error(path, bad) from bad
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about storages of old files
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except BROKEN as error:
        raise _refusal(path, error) from error
    if not isinstance(state, dict) or not state:
        raise weights_error(path, "is not a table of tensors by name", "give a model's weights")
    for name, tensor in state.items():
        if not isinstance(name, str) or not _plain(tensor):
            raise weights_error(
                path, f"entry {shown(name)} is not a plain tensor", "give a model's weights"
            )
    return dict(state)


def _plain(value: object) -> bool:
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _refusal(path: Path, error: BaseException) -> WeightsError:
    """Say whether the file asked for code or is only broken."""
    text = str(error)
    found = REFUSED.search(text)
    if found:
        return weights_error(
            path,
            f"is a pickle that asks for {shown(found.group(1))}; nothing of it was run",
            "do not use this file",
        )
    why = text.partition("WeightsUnpickler error:")[2].strip() or text or type(error).__name__
    return weights_error(path, f"cannot be read as PyTorch weights: {shown(why.splitlines()[0])}")
