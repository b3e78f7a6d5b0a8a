"""`tiercel convert`: a pickled Falcon checkpoint to safetensors, once, apart from serving.

Owns planning and writing the new folder; `pickled.py` reads the old one. Memory stays at one buffer
plus what the system caches of mapped files.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from tiercel.errors import ConfigError
from tiercel.foreign_files import BadFile, check_inside, open_regular
from tiercel.model.checkpoint import DTYPES, HEAD, PREFIX, Checkpoint, check_finite, match_tensors
from tiercel.model.config import load_spec
from tiercel.model.pickled import INDEX_NAME as PICKLE_INDEX_NAME
from tiercel.model.pickled import pickle_files, read_pickle
from tiercel.model.progress import Advance, byte_bar
from tiercel.model.safetensors_file import INDEX_NAME, TensorEntry, weights_error

SHARD_BYTES = 5_000_000_000
COPIED_BYTES = 16 * 1024 * 1024  # one buffer between reading and writing
COPIED_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".md")
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Shard:
    """One file to write: the canonical names and where each tensor comes from, in order."""

    name: str
    tensors: dict[str, TensorEntry]


def convert(source: Path, target: Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write the model of `source` (config.json and *.bin) to the new folder `target`; return it.

    Tensors keep their dtype and bytes; a tied head that the checkpoint repeats is dropped. Files of
    the tokenizer and the configuration are copied, code is not. `target` appears only when it is
    complete and has been checked; a folder that exists is not overwritten unless it is empty.

    Raises ConfigError for the configuration and the target, WeightsError for the weights.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: exists; give a folder that does not exist yet")
    spec = load_spec(source)
    entries = [entry for path in pickle_files(source) for entry in _describe(path)]
    tensors, tied_copy = match_tensors(source, entries, spec)
    if tied_copy is not None:
        _check_same(next(iter(tensors.values())), tied_copy)
    shards = _plan(tensors, shard_bytes)
    total = sum(entry.nbytes for entry in tensors.values())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < total:
            raise ConfigError(f"{target}: needs {total} bytes, but only {free} are free there")
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}") from error
    try:
        with byte_bar(f"Converting {source.name}", total) as advance:
            for shard in shards:
                _write_shard(work / shard.name, shard, advance)
        _write_index(work, shards, total)
        _copy_files(source, work)
        Checkpoint.open(work, spec)
        work.chmod(0o755)
        work.replace(target)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _describe(path: Path) -> Iterator[TensorEntry]:
    """Yield name, dtype and shape of every tensor in a pickle, as an entry without an offset."""
    tensors = read_pickle(path)
    size = path.stat().st_size
    for name, tensor in tensors.items():
        dtype = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
        yield TensorEntry(name, path, size, dtype, tuple(tensor.shape), 0, tensor.nbytes)


def _check_same(embedding: TensorEntry, head: TensorEntry) -> None:
    """Refuse a head that config.json ties to the embedding but that is another matrix."""
    ours = read_pickle(embedding.file)[embedding.name]
    theirs = read_pickle(head.file)[head.name]
    if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
        raise weights_error(
            head.file,
            f"tensor '{HEAD}' differs from the embedding, but config.json ties them",
            "set tie_word_embeddings to false in config.json if the head is its own",
        )


def _plan(tensors: dict[str, TensorEntry], shard_bytes: int) -> list[_Shard]:
    """Group the tensors into files of at most `shard_bytes`, in the order of the old files.

    That order lets each old file be opened once per new file it goes to.
    """
    groups: list[dict[str, TensorEntry]] = [{}]
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].file.name):
        filled = sum(other.nbytes for other in groups[-1].values())
        if groups[-1] and filled + entry.nbytes > shard_bytes:
            groups.append({})
        groups[-1][name if name == HEAD else PREFIX + name] = entry
    if len(groups) == 1:
        return [_Shard("model.safetensors", groups[0])]
    return [
        _Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group)
        for number, group in enumerate(groups, start=1)
    ]


def _write_shard(path: Path, shard: _Shard, advance: Advance) -> None:
    """Write one safetensors file: the header from the plan, then the tensors' bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in shard.tensors.items():
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.nbytes],
        }
        end += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned, as safetensors asks for
    opened: tuple[Path, dict[str, torch.Tensor]] | None = None
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in shard.tensors.values():
            if opened is None or opened[0] != entry.file:
                opened = (entry.file, read_pickle(entry.file))
            _write_tensor(file, opened[1].get(entry.name), entry, advance)
        file.flush()
        os.fsync(file.fileno())


def _write_tensor(
    file: BinaryIO, tensor: torch.Tensor | None, entry: TensorEntry, advance: Advance
) -> None:
    """Copy the tensor's bytes, rows by rows; tensors that share storage are each written whole."""
    if tensor is None or tuple(tensor.shape) != entry.shape or tensor.nbytes != entry.nbytes:
        raise weights_error(entry.file, "changed while it was converted", "start again")
    rows = tensor.detach().reshape(tensor.shape or (1,))
    step = max(1, COPIED_BYTES * len(rows) // max(1, entry.nbytes))
    for start in range(0, len(rows), step):
        part = rows[start : start + step].contiguous()
        check_finite(entry, part)
        data = part.view(-1).view(torch.uint8).numpy()
        file.write(data.data)
        advance(len(data))


def _write_index(folder: Path, shards: list[_Shard], total_bytes: int) -> None:
    if len(shards) == 1:
        return
    places = {name: shard.name for shard in shards for name in shard.tensors}
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": dict(sorted(places.items())),
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_files(source: Path, target: Path) -> None:
    """Copy configuration, tokenizer and model card; never code, weights or links that lead away."""
    for path in sorted(source.iterdir()):
        wanted = path.suffix in COPIED_SUFFIXES or path.name.upper().startswith("LICENSE")
        if not wanted or path.name in (INDEX_NAME, PICKLE_INDEX_NAME):
            continue
        try:
            check_inside(source, path)
            with open_regular(path) as old, (target / path.name).open("wb") as new:
                shutil.copyfileobj(old, new)
        except BadFile as bad:
            raise ConfigError(f"{path}: {bad}; replace it with the file itself") from bad
