"""Reading good checkpoints: names, bytes, files. What is refused is in test_corrupt.py."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import VARIANTS, make_checkpoint
from tiercel.errors import WeightsError
from tiercel.model.checkpoint import Checkpoint
from tiercel.model.config import expected_tensors, load_spec
from tiercel.parallel.part import Part, Run
from tiercel.parallel.take import take


def open_checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder, load_spec(folder))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_equal_the_file(variant: str, shards: int, tmp_path: Path) -> None:
    dtype = "bfloat16" if shards > 1 else "float32"
    make_checkpoint(tmp_path, variant, shards=shards, prefix=shards > 1, dtype=dtype)
    checkpoint = open_checkpoint(tmp_path)
    stored = {}
    for file in tmp_path.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            stored[name.removeprefix("transformer.")] = (tensor, file)
    assert set(checkpoint.names) == set(stored) == set(expected_tensors(load_spec(tmp_path)))
    for name, (tensor, file) in stored.items():
        read = checkpoint.tensor(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
        assert checkpoint.nbytes(name) == tensor.nbytes
        assert checkpoint.shape(name) == tensor.shape
        assert checkpoint.file(name) == file
        middle = len(tensor) // 3
        for axis in range(tensor.ndim):
            part = Part(axis, (Run(middle, 7), Run(None, 3), Run(0, 2)))
            index = torch.tensor(part.indices())
            assert torch.equal(checkpoint.part(name, part), take(tensor, axis, index))
            middle = tensor.shape[-1] // 3
    assert checkpoint.total_bytes == sum(tensor.nbytes for tensor, _ in stored.values())
    with pytest.raises(ValueError, match="which has"):
        checkpoint.part("ln_f.weight", Part(0, (Run(0, 10**6),)))


def test_several_files_without_an_index_and_files_of_a_trainer(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "40b", shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file({"lr": torch.ones(1)}, tmp_path / "training_args.safetensors")
    assert len(open_checkpoint(tmp_path).names) == len(expected_tensors(load_spec(tmp_path)))


def test_rotary_tables_of_old_versions_are_left_out(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b")
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("self_attention.maybe_rotary.inv_freq", "self_attention.rotary_emb.inv_freq"):
        tensors[f"transformer.h.0.{name}"] = torch.ones(8, dtype=torch.float64)
    save_file(tensors, tmp_path / "model.safetensors")
    assert not any("inv_freq" in name for name in open_checkpoint(tmp_path).names)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_head_may_be_repeated(dtype: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b", dtype=dtype, vocab_size=30_000)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors["transformer.word_embeddings.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, path)
    checkpoint = open_checkpoint(tmp_path)
    assert "lm_head.weight" not in checkpoint.names
    assert torch.equal(checkpoint.tensor("word_embeddings.weight"), embedding)

    other = embedding.clone()
    other[-1, -1] += 1  # the last value of the last block that is compared
    save_file(tensors | {"lm_head.weight": other}, path)
    with pytest.raises(WeightsError, match=r"lm_head\.weight.*tie_word_embeddings"):
        open_checkpoint(tmp_path).tensor("word_embeddings.weight")
    as_half = embedding.to(torch.float16)
    save_file(tensors | {"lm_head.weight": as_half}, path)
    with pytest.raises(WeightsError, match=r"lm_head\.weight"):
        open_checkpoint(tmp_path).tensor("word_embeddings.weight")


def test_a_tied_head_may_stand_for_the_embedding(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors.pop("transformer.word_embeddings.weight")
    save_file(tensors | {"lm_head.weight": embedding}, path)
    assert torch.equal(open_checkpoint(tmp_path).tensor("word_embeddings.weight"), embedding)


def test_an_untied_model_needs_its_head(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "11b")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"lm_head\.weight"):
        open_checkpoint(tmp_path)


def test_links_of_the_hub_cache(tmp_path: Path) -> None:
    """A snapshot links into the blobs of its own repository, and nowhere else."""
    repository = tmp_path / "models--org--name"
    blobs = make_checkpoint(repository / "blobs", "7b")
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert open_checkpoint(snapshot).tensor("ln_f.weight").shape == (80,)

    other = tmp_path / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (blobs / "model.safetensors").rename(other / "model.safetensors")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(other / "model.safetensors")
    with pytest.raises(WeightsError, match="symbolic link"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize("change", ["shorter", "longer", "gone", "fifo"])
def test_a_file_that_changes_after_opening(change: str, tmp_path: Path) -> None:
    import os

    make_checkpoint(tmp_path, "7b")
    checkpoint = open_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    if change == "shorter":
        os.truncate(path, path.stat().st_size - 1)
    elif change == "longer":
        os.truncate(path, path.stat().st_size + 1)
    else:
        path.unlink()
        if change == "fifo":
            os.mkfifo(path)
    with pytest.raises(WeightsError, match=r"model\.safetensors: (changed|does not|is not)"):
        checkpoint.tensor("ln_f.weight")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_anywhere_is_found(dtype: str, value: float, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b", dtype=dtype)
    path = tmp_path / "model.safetensors"
    name = "h.1.mlp.dense_4h_to_h.weight"
    tensors = load_file(path)
    tensor = tensors[f"transformer.{name}"]
    for place in (0, 1, tensor.numel() // 2 + 3, tensor.numel() - 1):
        changed = tensor.clone()
        changed.view(-1)[place] = value
        save_file(tensors | {f"transformer.{name}": changed}, path)
        with pytest.raises(WeightsError, match="NaN or infinities"):
            open_checkpoint(tmp_path).tensor(name)


def test_index_metadata_is_not_needed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b", shards=2)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(tmp_path).total_bytes > 0
