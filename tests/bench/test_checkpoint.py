"""The random checkpoint: its size, and that greedy decoding stays within the tokenizer."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tiercel.bench.checkpoint import END_OF_TEXT_ID, RandomModel, make_random_checkpoint


def test_the_default_has_about_150_million_parameters() -> None:
    assert 140e6 < RandomModel().parameters() < 160e6


def test_holds_what_the_config_says(tmp_path: Path) -> None:
    model = RandomModel(hidden_size=64, heads=4, layers=2, vocab_size=5_000, dtype="bfloat16")
    folder = make_random_checkpoint(tmp_path / "model", model)
    tensors = load_file(folder / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == model.shapes()
    assert sum(tensor.numel() for tensor in tensors.values()) == model.parameters()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 2)

    embedding = tensors["transformer.word_embeddings.weight"].float()
    silent = embedding.abs().sum(1) == 0
    assert silent[END_OF_TEXT_ID]
    assert silent[4_096:].all()
    assert not silent[:4_096].all()
    assert int(silent[:4_096].sum()) == 1


def test_one_seed_gives_one_checkpoint(tmp_path: Path) -> None:
    model = RandomModel(hidden_size=64, heads=4, layers=1, vocab_size=5_000)
    first = make_random_checkpoint(tmp_path / "a", model) / "model.safetensors"
    second = make_random_checkpoint(tmp_path / "b", model) / "model.safetensors"
    assert first.read_bytes() == second.read_bytes()
