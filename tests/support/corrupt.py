"""Named ways to break the weights of a good folder, each with what the error must say.

Used by the tests of the checkpoint and, through a real process, by those of the command. The cases
with a wrong configuration, CONFIGS, come from wrong_config.py.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import write_json
from support.corruption import Break, Corruption
from support.wrong_config import CONFIGS

__all__ = ["CANARY", "CONFIGS", "SINGLE", "WEIGHTS", "Bomb", "Corruption", "join_file"]

SINGLE = "model.safetensors"
FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "transformer.ln_f.weight"
QKV = "transformer.h.1.self_attention.query_key_value.weight"
EMBEDDING = "transformer.word_embeddings.weight"
CANARY = "canary"  # the file that a pickle would make if it were run


class Bomb:
    """Makes the canary file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch '{folder / CANARY}'"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def split_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return header and data of a safetensors file."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def join_file(path: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    """Write a safetensors file, with a false header length where one is given."""
    size = len(header) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + header + data)


def _raw_header(header: bytes, length: int | None = None) -> Break:
    def apply(folder: Path) -> None:
        join_file(folder / SINGLE, header, split_file(folder / SINGLE)[1], length)

    return apply


def _edit_header(edit: Callable[[dict[str, Any]], None]) -> Break:
    def apply(folder: Path) -> None:
        header, data = split_file(folder / SINGLE)
        edit(header)
        join_file(folder / SINGLE, json.dumps(header).encode(), data)

    return apply


def _set(tensor: str, field: str, value: object) -> Break:
    return _edit_header(lambda header: header[tensor].update({field: value}))


def _edit_tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Break:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        edit(tensors)
        save_file(tensors, folder / SINGLE)

    return apply


def _replace_weights(make: Callable[[Path], Any]) -> Break:
    def apply(folder: Path) -> None:
        (folder / SINGLE).unlink()
        make(folder / SINGLE)

    return apply


def _edit_index(edit: Callable[[dict[str, Any]], Any]) -> Break:
    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        edit(index)
        write_json(folder / INDEX, index)

    return apply


def _truncate(keep: Callable[[int], int]) -> Break:
    def apply(folder: Path) -> None:
        os.truncate(folder / SINGLE, keep((folder / SINGLE).stat().st_size))

    return apply


def _shift_offsets(tensor: str, by: int) -> Break:
    def edit(header: dict[str, Any]) -> None:
        header[tensor]["data_offsets"] = [n + by for n in header[tensor]["data_offsets"]]

    return _edit_header(edit)


def _swap_offsets(header: dict[str, Any]) -> None:
    header[QKV]["data_offsets"].reverse()


def _gap(folder: Path) -> None:
    """Insert 64 bytes of nothing between the first and the second tensor."""
    header, data = split_file(folder / SINGLE)
    spans = sorted(v["data_offsets"] for k, v in header.items() if k != "__metadata__")
    cut = spans[0][1]
    for key, value in header.items():
        if key != "__metadata__" and value["data_offsets"][0] >= cut:
            value["data_offsets"] = [n + 64 for n in value["data_offsets"]]
    data = data[:cut] + bytes(64) + data[cut:]
    join_file(folder / SINGLE, json.dumps(header).encode(), data)


def _duplicate_key(folder: Path) -> None:
    header, data = split_file(folder / SINGLE)
    text = json.dumps(header)
    again = json.dumps({NORM: header[NORM]})[1:-1]
    join_file(folder / SINGLE, f"{text[:-1]}, {again}}}".encode(), data)


def _second_file(name: str, tensor: str) -> Break:
    def apply(folder: Path) -> None:
        value = load_file(folder / SINGLE)[NORM]
        save_file({tensor: value}, folder / name)

    return apply


def _huge_header(folder: Path) -> None:
    """A sparse file whose header would have 64 MiB."""
    with (folder / SINGLE).open("wb") as file:
        file.write((64 << 20).to_bytes(8, "little") + b"{")
        file.truncate(128 << 20)


def _link_out(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}-outside.safetensors"
    (folder / SINGLE).rename(outside)
    (folder / SINGLE).symlink_to(outside)


def _pickle(path: Path) -> None:
    torch.save({"weight": Bomb(path.parent)}, path)


def _old_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Bomb(path.parent)}, protocol=2))


def _only_pickles(folder: Path) -> None:
    (folder / SINGLE).unlink()
    torch.save({"weight": Bomb(folder)}, folder / "pytorch_model.bin")


def _set_value(tensor: str, value: float) -> Break:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[tensor].view(-1)[-7] = value

    return _edit_tensors(edit)


def _other_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors[EMBEDDING] + 1e-3


def _place(tensor: str, file: str) -> Break:
    return _edit_index(lambda index: index["weight_map"].update({tensor: file}))


def _both(folder: Path) -> None:
    save_file(load_file(folder / FIRST), folder / SINGLE)


def _fifo_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    os.mkfifo(folder / INDEX)


def _norm_as(dtype: torch.dtype) -> Break:
    return _edit_tensors(lambda tensors: tensors.update({NORM: tensors[NORM].to(dtype)}))


WEIGHTS: tuple[Corruption, ...] = (
    Corruption(
        "truncated_by_one_byte", _truncate(lambda n: n - 1), (SINGLE, "truncated", "tensor")
    ),
    Corruption("truncated_by_half", _truncate(lambda n: n // 2), (SINGLE, "truncated", "tensor")),
    Corruption("truncated_in_header", _truncate(lambda n: 100), (SINGLE, "header length")),
    Corruption("five_bytes", _truncate(lambda n: 5), (SINGLE, "truncated", "5 bytes")),
    Corruption("empty", _truncate(lambda n: 0), (SINGLE, "is empty")),
    Corruption("header_length_0", _raw_header(b"{}", 0), (SINGLE, "header length of 0")),
    Corruption("header_length_2_63", _raw_header(b"{}", 1 << 63), (SINGLE, str(1 << 63))),
    Corruption("header_longer_than_file", _raw_header(b"{}", 1 << 30), (SINGLE, str(1 << 30))),
    Corruption("header_of_64_mib", _huge_header, (SINGLE, str(64 << 20), "at most")),
    Corruption("header_not_json", _raw_header(b'{"a": '), (SINGLE, "not JSON")),
    Corruption("header_not_utf8", _raw_header(b'{"\xff": 1}'), (SINGLE, "not JSON", "UTF-8")),
    Corruption("header_a_list", _raw_header(b"[]      "), (SINGLE, "not a JSON object")),
    Corruption("header_nested", _raw_header(b'{"a":' * 99999), (SINGLE, "not JSON")),
    Corruption("header_long_number", _raw_header(b'{"a": ' + b"9" * 9999 + b"}"), (SINGLE, "JSON")),
    Corruption("header_nan", _raw_header(b'{"a": NaN}'), (SINGLE, "NaN")),
    Corruption("header_without_tensors", _raw_header(b"{}"), (SINGLE, "belong to none")),
    Corruption("header_entry_a_number", _raw_header(b'{"x": 5}'), (SINGLE, "'x'", "5")),
    Corruption("name_twice", _duplicate_key, (SINGLE, NORM, "twice")),
    Corruption("overlapping_offsets", _shift_offsets(NORM, -64), (SINGLE, NORM, "overlaps")),
    Corruption("gap_between_tensors", _gap, (SINGLE, "64 bytes before", "belong to none")),
    Corruption("bytes_at_end", lambda f: _append(f / SINGLE), (SINGLE, "3 bytes after the last")),
    Corruption("negative_offset", _set(QKV, "data_offsets", [-8, 8]), (SINGLE, QKV, "offsets")),
    Corruption("offset_past_end", _shift_offsets(QKV, 1 << 40), (SINGLE, QKV, "truncated")),
    Corruption("offset_2_70", _set(QKV, "data_offsets", [0, 1 << 70]), (SINGLE, QKV, "offsets")),
    Corruption("offsets_reversed", _edit_header(_swap_offsets), (SINGLE, QKV, "span -")),
    Corruption("offset_a_text", _set(QKV, "data_offsets", ["0", "8"]), (SINGLE, QKV, "offsets")),
    Corruption("offset_missing", _edit_header(lambda h: h[QKV].pop("data_offsets")), (SINGLE, QKV)),
    Corruption("dtype_unknown", _set(NORM, "dtype", "F17"), (SINGLE, NORM, "'F17'")),
    Corruption("dtype_too_wide", _set(NORM, "dtype", "F64"), (SINGLE, NORM, "F64", "needs")),
    Corruption("dtype_integer", _norm_as(torch.int32), (SINGLE, NORM, "dtype I32", "BF16")),
    Corruption("dtype_float64", _norm_as(torch.float64), (SINGLE, NORM, "dtype F64", "BF16")),
    Corruption("shape_negative", _set(NORM, "shape", [-80]), (SINGLE, NORM, "[-80]")),
    Corruption("shape_huge", _set(NORM, "shape", [1 << 62]), (SINGLE, NORM, "shape")),
    Corruption("shape_larger", _set(NORM, "shape", [81]), (SINGLE, NORM, "needs 324 bytes")),
    Corruption("shape_transposed", _set(QKV, "shape", [80, 112]), (SINGLE, QKV, "[112, 80]")),
    Corruption(
        "tensor_missing", _edit_tensors(lambda t: t.pop(QKV)), (SINGLE, QKV[12:], "does not hold")
    ),
    Corruption(
        "tensor_extra",
        _edit_tensors(lambda t: t.update({"transformer.h.2.x": t[NORM].clone()})),
        (SINGLE, "transformer.h.2.x", "has not"),
    ),
    Corruption(
        "tensor_in_two_files", _second_file("z.safetensors", NORM), ("z.safe", NORM, SINGLE)
    ),
    Corruption(
        "tensor_twice", _second_file("z.safetensors", NORM[12:]), ("z.safe", NORM[12:], NORM)
    ),
    Corruption("nan", _set_value(QKV, float("nan")), (SINGLE, QKV, "NaN")),
    Corruption("infinity", _set_value(NORM, float("-inf")), (SINGLE, NORM, "infinities")),
    Corruption("tied_head_differs", _edit_tensors(_other_head), (SINGLE, "lm_head", "ties")),
    Corruption("directory", _replace_weights(Path.mkdir), (SINGLE, "is a directory")),
    Corruption("fifo", _replace_weights(os.mkfifo), (SINGLE, "not a regular file")),
    Corruption("link_out_of_folder", _link_out, (SINGLE, "symbolic link")),
    Corruption("link_to_nothing", _replace_weights(lambda p: p.symlink_to("x")), (SINGLE, "exist")),
    Corruption("pickle", _replace_weights(_pickle), (SINGLE, "pickle", "tiercel convert")),
    Corruption("old_pickle", _replace_weights(_old_pickle), (SINGLE, "pickle", "tiercel convert")),
    Corruption("only_pickles", _only_pickles, ("pytorch_model.bin", "pickle", "tiercel convert")),
    Corruption("no_weights", lambda f: (f / SINGLE).unlink(), ("no *.safetensors",)),
    Corruption(
        "lfs_pointer",
        lambda f: _write(f / SINGLE, "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        (SINGLE, "Git LFS pointer"),
    ),
    Corruption("index_leads_out", _place(NORM, "../x.safetensors"), (INDEX, "'../x", NORM), 2),
    Corruption("index_absolute", _place(NORM, "/x.safetensors"), (INDEX, "'/x.safe", NORM), 2),
    Corruption("index_names_a_pickle", _place(NORM, "x.bin"), (INDEX, "'x.bin'", NORM), 2),
    Corruption("index_file_missing", lambda f: (f / FIRST).unlink(), (FIRST, "not exist"), 2),
    Corruption("index_wrong_file", _place(EMBEDDING, SECOND), (INDEX, EMBEDDING, FIRST), 2),
    Corruption("index_unknown_name", _place("transformer.x", FIRST), (INDEX, "transformer.x"), 2),
    Corruption(
        "index_lacks_a_tensor",
        _edit_index(lambda index: index["weight_map"].pop(NORM)),
        (INDEX, "does not name", NORM),
        2,
    ),
    Corruption("index_not_json", lambda f: _write(f / INDEX, "{"), (INDEX, "not JSON"), 2),
    Corruption("index_no_map", lambda f: _write(f / INDEX, "{}"), (INDEX, "weight_map"), 2),
    Corruption("index_fifo", _fifo_index, (INDEX, "not a regular file"), 2),
    Corruption("index_beside_single_file", _both, (INDEX, SINGLE, "remove one"), 2),
)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"abc")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
