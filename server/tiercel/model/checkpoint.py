"""A model folder's safetensors weights under one canonical name each, checked before any is read.

Owns which tensors there must be and reading them one by one. Does not cast, permute, shard or keep
them: that is the loader's.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tiercel.foreign_files import BadFile, open_regular, read_exactly, shown
from tiercel.model.config import expected_tensors, linear_weights
from tiercel.model.safetensors_file import (
    INDEX_NAME,
    TensorEntry,
    read_header,
    read_index,
    weight_files,
    weights_error,
)
from tiercel.model.spec import FalconSpec
from tiercel.model.stored_weights import StoredEntries, take_stored
from tiercel.parallel.part import Part
from tiercel.quantization.stored import Stored

PREFIX = "transformer."
EMBEDDING = "word_embeddings.weight"
HEAD = "lm_head.weight"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I8": torch.int8, "U8": torch.uint8}  # in parts of quantized weights only
# Tables that old versions saved beside the weights; they follow from config.json.
ROTARY_TABLE = re.compile(
    r"(h\.\d+\.self_attention\.)?(maybe_rotary|rotary|rotary_emb)\.(inv_freq|cos_cached|sin_cached)"
)
COMPARED_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one model. Immutable, holds no file open; reading needs the files unchanged.

    Names are those of `expected_tensors`: as in transformers, without `transformer.`.
    """

    folder: Path
    _entries: dict[str, TensorEntry]
    _tied_copy: TensorEntry | None  # an lm_head.weight that must equal the embedding
    _stored: dict[str, StoredEntries] = field(default_factory=dict)  # weights that are quantized

    @classmethod
    def open(cls, folder: Path, spec: FalconSpec) -> "Checkpoint":
        """Read and check index and headers of the weights in `folder`, and no tensor data.

        Raises WeightsError, one line that names the file and the tensor, for files that are broken,
        that contradict the index, or whose tensors are not exactly those of `spec`.
        """
        if spec.quantization is None:
            return cls(folder, *match_tensors(folder, _read_entries(folder), spec))
        found = _canonical(_read_entries(folder))
        stored = take_stored(found, linear_weights(spec), spec.quantization)
        return cls(folder, *_match(folder, found, spec, stored), stored)

    @property
    def names(self) -> tuple[str, ...]:
        """All canonical names: the embedding, the layers in order, the final norm, the head.

        The quantized weights come last.
        """
        return (*self._entries, *self._stored)

    @property
    def total_bytes(self) -> int:
        """Sum of `nbytes` over all names."""
        return sum(self.nbytes(name) for name in self.names)

    def nbytes(self, name: str) -> int:
        """Bytes of one tensor in the file, before any cast, with all that belongs to it."""
        stored = self._stored.get(name)
        return self._entries[name].nbytes if stored is None else stored.nbytes

    def is_stored(self, name: str) -> bool:
        """Whether the weight is quantized: then `stored` reads it, and `tensor` does not."""
        return name in self._stored

    def stored(self, name: str) -> Stored:
        """Return one quantized weight. The caller owns it.

        Raises WeightsError for statistics that cannot be, or if the file changed since `open`.
        """
        return self._stored[name].read(self._read_whole)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor in numbers, also where it is quantized."""
        stored = self._stored.get(name)
        return self._entries[name].shape if stored is None else stored.shape

    def file(self, name: str) -> Path:
        """The file that holds the tensor, for messages."""
        stored = self._stored.get(name)
        return (self._entries[name] if stored is None else stored.weight).file

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor in the file's dtype: float32, float16 or bfloat16. The caller owns it.

        Raises WeightsError if it holds NaN or infinities, or if the file changed since `open`. The
        embedding is also compared with a tied `lm_head.weight` that the checkpoint may hold.
        """
        tensor = self._read_whole(self._entries[name])
        if name == EMBEDDING and self._tied_copy is not None:
            self._check_tied(tensor, self._tied_copy)
        return tensor

    def part(self, name: str, part: Part) -> torch.Tensor:
        """Return those rows or columns, in the part's order, and read only their bytes.

        Raises as `tensor` does, but compares no tied head.
        """
        entry = self._entries[name]
        shape = list(entry.shape)
        if any(first is not None and first + n > shape[part.axis] for first, n in part.runs):
            raise ValueError(f"{part.runs} of {name}, which has {shape}")
        shape[part.axis] = part.size
        tensor = torch.zeros(shape, dtype=DTYPES[entry.dtype])
        _fill(entry, _pieces(entry, tensor, part))
        check_finite(entry, tensor)
        return tensor

    def _read_whole(self, entry: TensorEntry) -> torch.Tensor:
        tensor = torch.empty(entry.shape, dtype=(DTYPES | INTEGERS)[entry.dtype])
        # Read, not mapped: a file that shrinks meanwhile is an error here and not a SIGBUS.
        _fill(entry, [(entry.offset, _bytes_of(tensor))] if tensor.numel() else [])
        check_finite(entry, tensor)
        return tensor

    def _check_tied(self, embedding: torch.Tensor, copy: TensorEntry) -> None:
        """Compare bytes block by block, so that the copy is never in memory as a whole."""
        ours = _bytes_of(embedding)
        block = bytearray(min(COMPARED_BYTES, copy.nbytes))
        same = copy.dtype == self._entries[EMBEDDING].dtype
        for start in range(0, copy.nbytes if same else 0, len(block)):
            part = memoryview(block)[: copy.nbytes - start]
            _fill(copy, [(copy.offset + start, part)])
            same = same and part == ours[start : start + len(part)]
        if not same:
            raise weights_error(
                copy.file,
                f"tensor {shown(copy.name)} differs from the embedding, but config.json ties them",
                "set tie_word_embeddings to false in config.json if the head is its own",
            )


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data


def _pieces(
    entry: TensorEntry, tensor: torch.Tensor, part: Part
) -> Iterator[tuple[int, memoryview]]:
    """Offsets in the file, and where in `tensor` those bytes belong."""
    row_bytes = entry.nbytes // entry.shape[0]
    if part.axis == 0:
        at = 0
        for first, count in part.runs:
            if first is not None:
                yield entry.offset + first * row_bytes, _bytes_of(tensor[at : at + count])
            at += count
        return
    item_bytes = tensor.itemsize
    for row, numbers in enumerate(tensor):
        view, at = _bytes_of(numbers), 0
        for first, count in part.runs:
            size = count * item_bytes
            if first is not None:
                place = entry.offset + row * row_bytes + first * item_bytes
                yield place, view[at : at + size]
            at += size


def _fill(entry: TensorEntry, pieces: Iterable[tuple[int, memoryview]]) -> None:
    """Fill buffers from the file of `entry`. Raises WeightsError if the file is not as it was."""
    try:
        with open_regular(entry.file) as file:
            whole = os.fstat(file.fileno()).st_size == entry.file_bytes
            for offset, buffer in pieces if whole else ():
                file.seek(offset)
                if read_exactly(file, buffer) < len(buffer):
                    whole = False
                    break
    except BadFile as bad:
        raise weights_error(entry.file, bad) from bad
    except OSError as error:
        raise weights_error(
            entry.file, f"tensor {shown(entry.name)} cannot be read: {error.strerror}"
        ) from error
    if not whole:
        raise weights_error(
            entry.file,
            f"changed while tensor {shown(entry.name)} was read",
            "start again when nothing writes to the folder",
        )


def check_finite(entry: TensorEntry, tensor: torch.Tensor) -> None:
    """`tensor`: the entry's or a part of it. Raises WeightsError for NaN and infinities."""
    if entry.dtype in INTEGERS or not tensor.numel():
        return
    # aminmax keeps NaN and makes no mask: 17 GB/s on one core, 20 times isfinite().all().
    if not all(math.isfinite(bound) for bound in torch.stack(torch.aminmax(tensor))):
        raise weights_error(
            entry.file,
            f"tensor {shown(entry.name)} holds NaN or infinities",
            "export the model again",
        )


def _read_entries(folder: Path) -> Iterator[TensorEntry]:
    """Yield the tensors of all files, checked against the index where there is one."""
    files = weight_files(folder)
    headers = {path.name: {entry.name: entry for entry in read_header(path)} for path in files}
    index_path = folder / INDEX_NAME
    if index_path.exists():
        index = read_index(folder)
        place = {tensor: file for file, entries in headers.items() for tensor in entries}
        for tensor, file in index.items():
            if tensor not in headers[file]:
                other = place.get(tensor)
                where = f"it is in {other}" if other else "it is in no file of the index"
                raise weights_error(
                    index_path, f"places tensor {shown(tensor)} in {file}, but {where}"
                )
        for tensor, file in place.items():
            if tensor not in index:
                raise weights_error(
                    index_path, f"does not name tensor {shown(tensor)}, which is in {file}"
                )
    for entries in headers.values():
        yield from entries.values()


def match_tensors(
    folder: Path, entries: Iterable[TensorEntry], spec: FalconSpec
) -> tuple[dict[str, TensorEntry], TensorEntry | None]:
    """Return exactly the tensors of `spec` by canonical name, the embedding first.

    The second value is an `lm_head.weight` that a tied checkpoint holds beside the embedding.
    Raises WeightsError for a missing, extra, double or misshapen tensor; `folder` is named where no
    file can be.
    """
    return _match(folder, _canonical(entries), spec, {})


def _match(
    folder: Path,
    found: dict[str, TensorEntry],
    spec: FalconSpec,
    stored: dict[str, StoredEntries],
) -> tuple[dict[str, TensorEntry], TensorEntry | None]:
    """`match_tensors`, of those that are not among the quantized ones."""
    expected = {name: s for name, s in expected_tensors(spec).items() if name not in stored}
    tied_copy = None
    if spec.tied and EMBEDDING in found:
        tied_copy = found.pop(HEAD, None)
    elif spec.tied and HEAD in found:
        found[EMBEDDING] = found.pop(HEAD)  # either may stand for both
    if tied_copy is not None:
        _check_tensor(tied_copy, expected[EMBEDDING])
    _check_names(folder, found, expected)
    for name, shape in expected.items():
        _check_tensor(found[name], shape)
    return {name: found[name] for name in expected}, tied_copy


def _canonical(entries: Iterable[TensorEntry]) -> dict[str, TensorEntry]:
    """Return the entries by canonical name; the same tensor twice is an error."""
    found: dict[str, TensorEntry] = {}
    for entry in entries:
        name = entry.name.removeprefix(PREFIX)
        if ROTARY_TABLE.fullmatch(name):
            continue
        if name in found:
            raise weights_error(
                entry.file,
                f"holds tensor {shown(entry.name)}, which is also in {found[name].file.name} as "
                f"{shown(found[name].name)}",
                "remove one of the two",
            )
        found[name] = entry
    return found


def _check_names(
    folder: Path, found: dict[str, TensorEntry], expected: dict[str, tuple[int, ...]]
) -> None:
    """Refuse missing and extra tensors, naming the first of them."""
    missing = [name for name in expected if name not in found]
    extra = [entry for name, entry in found.items() if name not in expected]
    if missing:
        count = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        files = {entry.file for entry in found.values()}
        instead = f", but {shown(extra[0].name)}" if extra else ""
        raise weights_error(
            files.pop() if len(files) == 1 else folder,
            f"does not hold tensor {shown(missing[0])}{count} of config.json's model{instead}",
            "compare config.json with the weights",
        )
    if extra:
        count = f" and {len(extra) - 1} others" if len(extra) > 1 else ""
        raise weights_error(
            extra[0].file,
            f"holds tensor {shown(extra[0].name)}{count}, which config.json's model has not",
            "compare config.json with the weights",
        )


def _check_tensor(entry: TensorEntry, shape: tuple[int, ...]) -> None:
    tensor = f"tensor {shown(entry.name)}"
    if entry.shape != shape:
        raise weights_error(
            entry.file,
            f"{tensor} has shape {list(entry.shape)}, but config.json asks for {list(shape)}",
            "compare config.json with the weights",
        )
    if entry.dtype not in DTYPES:
        raise weights_error(
            entry.file,
            f"{tensor} has dtype {entry.dtype}; only {', '.join(DTYPES)} are read",
            "use the original, unquantized weights",
        )
