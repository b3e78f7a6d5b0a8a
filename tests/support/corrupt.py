"""Named ways to break a good checkpoint folder, each with what the error must say.

The good folder is a "7b" of `make_checkpoint` with the number of shards the case asks for. Used by
the tests of the checkpoint and, through a real process, by those of the command.
"""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import write_json

SINGLE = "model.safetensors"
FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "transformer.ln_f.weight"
QKV = "transformer.h.1.self_attention.query_key_value.weight"
EMBEDDING = "transformer.word_embeddings.weight"
CANARY = "canary"  # the file that a pickle would make if it were run

Break = Callable[[Path], None]


@dataclass(frozen=True)
class Corruption:
    """One case: `apply` breaks the folder, the error's line must hold every one of `says`."""

    name: str
    apply: Break
    says: tuple[str, ...]
    shards: int = 1

    def __str__(self) -> str:
        return self.name


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
    Corruption("only_pickles", _only_pickles, ("pickle", "tiercel convert")),
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


def _edit_json(name: str, **fields: object) -> Break:
    """Set fields of a JSON file; None removes one."""

    def apply(folder: Path) -> None:
        path = folder / name
        values = json.loads(path.read_text(encoding="utf-8")) | fields
        write_json(path, {key: value for key, value in values.items() if value is not None})

    return apply


def _config(**fields: object) -> Break:
    return _edit_json("config.json", **fields)


def _no_eos(folder: Path) -> None:
    _config(eos_token_id=None)(folder)
    _edit_json("generation_config.json", eos_token_id=None)(folder)


def _tokenizer(folder: Path) -> None:
    model = {"vocab": {"a": 0, "b": 511}, "merges": []}
    added = [{"content": "<|new|>", "id": 512}]
    write_json(folder / "tokenizer.json", {"model": model, "added_tokens": added})


def _remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _fifo_config(folder: Path) -> None:
    _remove_config(folder)
    os.mkfifo(folder / "config.json")


def _raw_config(text: str) -> Break:
    return lambda folder: _write(folder / "config.json", text)


CONFIG = "config.json"
NEW = {"new_decoder_architecture": True}
OLD = {"multi_query": False}

CONFIGS: tuple[Corruption, ...] = (
    Corruption("config_missing", _remove_config, (CONFIG, "does not exist")),
    Corruption("config_fifo", _fifo_config, (CONFIG, "not a regular file")),
    Corruption("config_not_json", _raw_config("{'a': 1}"), (CONFIG, "not JSON")),
    Corruption("config_empty", _raw_config(""), (CONFIG, "not JSON")),
    Corruption("config_a_list", _raw_config("[1]"), (CONFIG, "not a JSON object")),
    Corruption("config_name_twice", _raw_config('{"a": 1, "a": 2}'), (CONFIG, "'a'", "twice")),
    Corruption("type_unknown", _config(model_type="llama"), (CONFIG, "'model_type'", "'llama'")),
    Corruption("type_missing", _config(model_type=None), (CONFIG, "'model_type'", "missing")),
    Corruption("type_a_number", _config(model_type=7), (CONFIG, "'model_type'", "RefinedWeb")),
    Corruption(
        "heads_not_dividing", _config(num_attention_heads=3), ("'num_attention_heads'", "3")
    ),
    Corruption("heads_zero", _config(num_attention_heads=0), ("'num_attention_heads'", "from 1")),
    Corruption("heads_missing", _config(num_attention_heads=None), ("'num_attention_heads'",)),
    Corruption("heads_contradict", _config(n_head=10), ("'n_head'", "10", "num_attention_heads")),
    Corruption("head_size_odd", _config(hidden_size=75), ("'hidden_size'", "even head size", "15")),
    Corruption("head_dim_contradicts", _config(head_dim=64), ("'head_dim'", "64", "16")),
    Corruption("hidden_negative", _config(hidden_size=-80), ("'hidden_size'", "-80")),
    Corruption("hidden_huge", _config(hidden_size=80 * 10**12), ("'hidden_size'", "131072")),
    Corruption("hidden_a_text", _config(hidden_size="80"), ("'hidden_size'", "'80'")),
    Corruption("hidden_a_fraction", _config(hidden_size=80.0), ("'hidden_size'", "80.0")),
    Corruption("hidden_is_true", _config(hidden_size=True), ("'hidden_size'", "True")),
    Corruption("layers_zero", _config(num_hidden_layers=0), ("'num_hidden_layers'", "from 1")),
    Corruption("layers_huge", _config(num_hidden_layers=10**30), ("'num_hidden_layers'", "1024")),
    Corruption("vocabulary_missing", _config(vocab_size=None), ("'vocab_size'", "missing")),
    Corruption("vocabulary_below_tokenizer", _tokenizer, ("tokenizer.json", "<|new|>", "512")),
    Corruption("ffn_negative", _config(ffn_hidden_size=-1), ("'ffn_hidden_size'", "-1")),
    Corruption("ff_factor_contradicts", _config(ff_factor=3), ("'ff_factor'", "4")),
    Corruption(
        "kv_heads_not_dividing", _config(num_kv_heads=2, **NEW), ("'num_kv_heads'", "divide")
    ),
    Corruption("kv_heads_too_many", _config(num_kv_heads=10, **NEW), ("'num_kv_heads'", "1 to 5")),
    Corruption("kv_heads_not_all", _config(num_kv_heads=1, **OLD), ("'num_kv_heads'", "5")),
    Corruption("norms_three", _config(num_ln_in_parallel_attn=3, **NEW), ("'num_ln_in", "1 to 2")),
    Corruption("norms_two_in_old", _config(num_ln_in_parallel_attn=2), ("'num_ln_in", "be 1")),
    Corruption("not_parallel_in_new", _config(parallel_attn=False, **NEW), ("'parallel_attn'",)),
    Corruption("flag_a_text", _config(alibi="false"), ("'alibi'", "true or false")),
    Corruption("epsilon_a_text", _config(layer_norm_epsilon="1e-5"), ("'layer_norm_epsilon'",)),
    Corruption("epsilon_negative", _config(layer_norm_epsilon=-1e-5), ("'layer_norm_epsilon'",)),
    Corruption("theta_zero", _config(rope_theta=0), ("'rope_theta'", "from 1")),
    Corruption("theta_endless", _config(rope_theta=10**400), ("'rope_theta'", "number from")),
    Corruption("rope_a_text", _config(rope_scaling="linear"), ("'rope_scaling'", "an object")),
    Corruption(
        "rope_type_unknown",
        _config(rope_scaling={"type": "yarn"}),
        ("'rope_scaling.type'", "'yarn'"),
    ),
    Corruption(
        "rope_no_factor",
        _config(rope_scaling={"type": "linear"}),
        ("'rope_scaling.factor'", "missing"),
    ),
    Corruption(
        "rope_factor_small",
        _config(rope_parameters={"rope_type": "dynamic", "factor": 0.5}),
        ("'rope_parameters.factor'", "0.5"),
    ),
    Corruption(
        "rope_field_unknown",
        _config(rope_scaling={"type": "linear", "factor": 2.0, "beta_fast": 32}),
        ("'rope_scaling.beta_fast'", "does not know"),
    ),
    Corruption(
        "positions_zero", _config(max_position_embeddings=0), ("'max_position_embeddings'",)
    ),
    Corruption("positions_huge", _config(max_position_embeddings=10**9), ("1048576",)),
    Corruption("eos_missing", _no_eos, (CONFIG, "'eos_token_id'", "missing")),
    Corruption(
        "eos_outside",
        _edit_json("generation_config.json", eos_token_id=[11, 512]),
        ("generation_config.json", "'eos_token_id'", "[11, 512]"),
    ),
    Corruption("bos_negative", _config(bos_token_id=-1), ("'bos_token_id'", "-1")),
    Corruption("dtype_unknown", _config(torch_dtype="float64"), ("'torch_dtype'", "float32")),
    Corruption("dtype_a_number", _config(dtype=16, torch_dtype=None), ("'dtype'", "16")),
    Corruption("activation_other", _config(activation="relu"), ("'activation'", "'gelu'")),
    Corruption(
        "quantized",
        _config(quantization_config={"quant_method": "gptq", "bits": 4}),
        ("'quantization_config'", "not supported yet"),
    ),
    Corruption(
        "residual_after_norm",
        _config(apply_residual_connection_post_layernorm=True),
        ("'apply_residual_connection_post_layernorm'", "only false"),
    ),
    Corruption("field_unknown", _config(logit_scale=0.5), ("'logit_scale'", "does not know")),
    Corruption("window_unknown", _config(sliding_window=256), ("'sliding_window'", "256")),
)
