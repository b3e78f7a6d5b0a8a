"""Random weights under the names of a checkpoint, and configs that both sides read alike."""

from pathlib import Path

import pytest
import torch

from tiercel.bench.gpu.models import RandomCheckpoint, config_of, write_config
from tiercel.model.config import expected_tensors, load_spec
from tiercel.model.spec import Block, FalconSpec, Position
from tiercel.model.weights import Weights
from tiercel.quantization.stored import StoredFourBit, StoredInt8
from tiercel_kernels.benchmark.bounds import SHAPES, FalconShape

CPU = torch.device("cpu")
TINY = FalconShape("tiny", 2, 64, 4, 1, 16, 96, 300, True)


def _spec(folder: Path, shape: FalconShape = TINY) -> FalconSpec:
    return load_spec(write_config(folder / shape.name, shape))


@pytest.mark.parametrize("name", SHAPES)
def test_the_config_means_the_shape(tmp_path: Path, name: str) -> None:
    shape = SHAPES[name]
    spec = _spec(tmp_path, shape)
    assert (spec.num_layers, spec.hidden_size, spec.num_heads) == (
        shape.layers,
        shape.hidden,
        shape.heads,
    )
    assert (spec.num_kv_heads, spec.head_dim, spec.ffn_size) == (
        shape.kv_heads,
        shape.head_dim,
        shape.ffn,
    )
    assert (spec.tied, spec.vocab_size) == (shape.tied, shape.vocab)
    assert (spec.position is Position.ALIBI) == shape.alibi
    assert (spec.block is Block.PARALLEL_TWO_NORM) == (shape.norms == 2)
    linear = sum(
        torch.Size(size).numel()
        for tensor, size in expected_tensors(spec).items()
        if len(size) == 2 and tensor.startswith("h.")
    )
    assert linear == shape.block_params


def test_every_tensor_has_its_shape_and_dtype_and_is_the_same_again(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    weights: Weights = RandomCheckpoint(spec, CPU, torch.bfloat16, seed=3)
    again = RandomCheckpoint(spec, CPU, torch.bfloat16, seed=3)
    assert weights.names == tuple(expected_tensors(spec))
    for name in reversed(weights.names):
        tensor = weights.tensor(name)
        assert tuple(tensor.shape) == weights.shape(name) == expected_tensors(spec)[name]
        assert (tensor.dtype, tensor.nbytes) == (torch.bfloat16, weights.nbytes(name))
        assert torch.equal(tensor, again.tensor(name))
    assert weights.total_bytes == sum(weights.nbytes(name) for name in weights.names)


def test_tensors_differ_from_each_other_and_from_another_seeds(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    weights = RandomCheckpoint(spec, CPU, torch.float32)
    first, second = (weights.tensor(f"h.{layer}.self_attention.dense.weight") for layer in range(2))
    assert not torch.equal(first, second)
    other = RandomCheckpoint(spec, CPU, torch.float32, seed=1)
    assert not torch.equal(first, other.tensor("h.0.self_attention.dense.weight"))
    assert float(first.std()) == pytest.approx(64**-0.5, rel=0.1)
    assert (weights.tensor("ln_f.weight") == 1).all()
    assert (weights.tensor("ln_f.bias") == 0).all()


@pytest.mark.parametrize("quantize", ["bitsandbytes", "bitsandbytes-nf4"])
def test_quantized_matrices_of_the_layers_are_stored(tmp_path: Path, quantize: str) -> None:
    weights = RandomCheckpoint(_spec(tmp_path), CPU, torch.bfloat16, quantize=quantize)
    names = [name for name in weights.names if weights.is_stored(name)]
    assert len(names) == 2 * 4  # of two layers
    assert all(name.startswith("h.") and name.endswith(".weight") for name in names)
    assert not weights.is_stored("word_embeddings.weight")
    for name in names:
        stored = weights.stored(name)
        assert stored.shape == weights.shape(name)
        assert isinstance(stored, StoredInt8 if quantize == "bitsandbytes" else StoredFourBit)
        numbers = stored.numbers() if isinstance(stored, StoredFourBit) else stored.rows(0, 1 << 30)
        assert float(numbers.std()) == pytest.approx(weights.shape(name)[1] ** -0.5, rel=0.1)
    with pytest.raises(KeyError):
        weights.stored("word_embeddings.weight")


def test_transformers_reads_the_same_config() -> None:
    transformers = pytest.importorskip("transformers")
    fields = config_of(SHAPES["falcon-40b"])
    config = transformers.FalconConfig(
        **{key: value for key, value in fields.items() if key != "model_type"}
    )
    assert (config.num_kv_heads, config.ffn_hidden_size) == (8, 32768)
