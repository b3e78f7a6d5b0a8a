"""Finds safetensors files and reads their headers, trusting no number before it is checked.

Reads no tensor data. The format: 8 bytes little-endian header length, a JSON object, then the data
(https://github.com/huggingface/safetensors#format). Torch-free.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiercel.errors import WeightsError
from tiercel.foreign_files import (
    BadFile,
    check_inside,
    open_regular,
    parse_object,
    read_exactly,
    read_object,
    shown,
)

INDEX_NAME = "model.safetensors.index.json"
HEADER_LIMIT_BYTES = 16 * 1024 * 1024  # the header of Falcon-180B has less than 0.1 MiB
INDEX_LIMIT_BYTES = 16 * 1024 * 1024
LARGEST_NUMBER = 1 << 48  # of an offset or a dimension; products stay exact anyway
# Files of trainers that are no weights of a model; TGI leaves out the same ones.
NO_WEIGHTS = ("arguments", "args", "training")

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

AGAIN = "download or copy it again"


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies. `offset` counts from the start of the file; sizes are in bytes."""

    name: str
    file: Path
    file_bytes: int
    dtype: str  # as in the header: "F32", "BF16", ...
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def weights_error(file: Path, reason: object, remedy: str = AGAIN) -> WeightsError:
    return WeightsError(f"{file}: {reason}; {remedy}")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of `folder`: those of the index, else all that may be weights.

    Raises WeightsError when there are none, or when index and files contradict each other.
    """
    index = folder / INDEX_NAME
    if index.exists() or index.is_symlink():
        return [folder / name for name in sorted(set(read_index(folder).values()))]
    files = sorted(
        path
        for path in folder.glob("*.safetensors")
        if not any(word in path.name for word in NO_WEIGHTS)
    )
    if not files:
        pickles = sorted((*folder.glob("*.bin"), *folder.glob("*.pt")))
        if pickles:
            raise weights_error(
                pickles[0],
                "is a pickle, which is never loaded, and there is no *.safetensors file beside it",
                f"make safetensors of them with `tiercel convert {folder} <new folder>`",
            )
        raise weights_error(folder, "holds no *.safetensors file", "give the folder of a model")
    return files


def read_index(folder: Path) -> dict[str, str]:
    """Return tensor name → file name of model.safetensors.index.json. Raises WeightsError."""
    path = folder / INDEX_NAME
    try:
        check_inside(folder, path)
        weight_map = read_object(path, INDEX_LIMIT_BYTES).get("weight_map")
    except BadFile as bad:
        raise weights_error(path, bad) from bad
    if not isinstance(weight_map, dict) or not weight_map:
        raise weights_error(path, "has no weight_map object")
    for name, file in weight_map.items():
        # Only plain names: the index may not choose files outside of the model's folder.
        plain = isinstance(file, str) and file.endswith(".safetensors") and file.isprintable()
        if not plain or "/" in file or "\\" in file or file.startswith("."):
            raise weights_error(
                path,
                f"places tensor {shown(name)} in {shown(file)}, which is not a plain file name",
            )
    single = folder / "model.safetensors"
    if single.name not in weight_map.values() and single.exists():
        raise weights_error(
            path, f"does not name {single.name}, which is also there", "remove one of the two"
        )
    return weight_map


def read_header(path: Path) -> list[TensorEntry]:
    """Return the tensors of one file in the order of their data.

    Raises WeightsError unless the header describes exactly the bytes that the file has.
    """
    try:
        check_inside(path.parent, path)
        with open_regular(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            start = bytearray(min(8, file_bytes))
            read_exactly(file, memoryview(start))
            _check_start(bytes(start), file_bytes)
            header = bytearray(int.from_bytes(start, "little"))
            read_exactly(file, memoryview(header))
        values = parse_object(bytes(header))
    except BadFile as bad:
        remedy = "convert it with `tiercel convert`" if "pickle" in str(bad) else AGAIN
        raise weights_error(path, bad, remedy) from bad
    values.pop("__metadata__", None)
    data_start = 8 + len(header)
    entries = [_entry(path, file_bytes, data_start, name, value) for name, value in values.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    _check_gapless(path, file_bytes, data_start, entries)
    return entries


def _check_start(start: bytes, file_bytes: int) -> None:
    """Check the first 8 bytes. Raises BadFile."""
    if file_bytes == 0:
        raise BadFile("is empty")
    if start.startswith((b"PK", b"\x80")) and start[2:4] in (b"\x03\x04", b"\x8a\n", b"}q", b"ct"):
        raise BadFile("is a pickle, not safetensors, and was not loaded")
    if start.startswith(b"version "):
        raise BadFile("is a Git LFS pointer, not the weights")
    if file_bytes < 8:
        raise BadFile(f"is truncated: it has {file_bytes} bytes, fewer than the header length")
    length = int.from_bytes(start, "little")
    if length < 2:
        raise BadFile(f"has a header length of {length} bytes")
    if length > file_bytes - 8:
        raise BadFile(f"has a header length of {length} bytes, but only {file_bytes} bytes in all")
    if length > HEADER_LIMIT_BYTES:
        raise BadFile(
            f"has a header length of {length} bytes; at most {HEADER_LIMIT_BYTES} are read"
        )


def _entry(path: Path, file_bytes: int, data_start: int, name: str, value: Any) -> TensorEntry:
    """Check the description of one tensor by itself."""
    tensor = f"tensor {shown(name)}"
    if not isinstance(value, dict):
        raise weights_error(path, f"{tensor} is described by {shown(value)}, not by an object")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise weights_error(path, f"{tensor} has the unknown dtype {shown(dtype)}")
    if not isinstance(shape, list) or not _naturals(shape):
        raise weights_error(path, f"{tensor} has the impossible shape {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not _naturals(offsets):
        raise weights_error(path, f"{tensor} has the impossible data offsets {shown(offsets)}")
    begin, end = offsets
    if data_start + end > file_bytes:
        raise weights_error(
            path,
            f"is truncated: {tensor} ends at byte {data_start + end}, the file at {file_bytes}",
        )
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != nbytes:
        raise weights_error(
            path,
            f"{tensor} of dtype {dtype} and shape {shown(shape)} needs {nbytes} bytes, "
            f"but its data offsets span {end - begin}",
        )
    return TensorEntry(name, path, file_bytes, dtype, tuple(shape), data_start + begin, nbytes)


def _naturals(items: list[Any]) -> bool:
    return all(type(item) is int and 0 <= item <= LARGEST_NUMBER for item in items)


def _check_gapless(
    path: Path, file_bytes: int, data_start: int, entries: list[TensorEntry]
) -> None:
    """Check that the tensors cover the data exactly once. Raises WeightsError."""
    end, before = data_start, ""
    for entry in entries:
        if entry.offset < end:
            raise weights_error(path, f"tensor {shown(entry.name)} overlaps tensor {shown(before)}")
        if entry.offset > end:
            raise weights_error(
                path, f"{entry.offset - end} bytes before tensor {shown(entry.name)} belong to none"
            )
        end, before = entry.offset + entry.nbytes, entry.name
    if end != file_bytes:
        raise weights_error(path, f"{file_bytes - end} bytes after the last tensor belong to none")
