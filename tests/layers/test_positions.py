"""Rotary tables and ALiBi biases against transformers' own."""

import pytest
import torch
from transformers import FalconConfig
from transformers.models.falcon.modeling_falcon import (
    FalconRotaryEmbedding,
    apply_rotary_pos_emb,
    build_alibi_tensor,
)

from tiercel.layers.alibi import bias_table, slopes
from tiercel.layers.rotary import Rotary, rotate_
from tiercel.model.spec import RopeScaling

HEADS, DIM, ORIGINAL = 3, 16, 64


def reference(theta: float, scaling: RopeScaling | None) -> FalconRotaryEmbedding:
    kind = None if scaling is None else {"rope_type": scaling.kind, "factor": scaling.factor}
    config = FalconConfig(
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        max_position_embeddings=ORIGINAL,
        rope_theta=theta,
        rope_scaling=kind,
    )
    return FalconRotaryEmbedding(config)


def turned(
    rotary: FalconRotaryEmbedding, heads: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """transformers' result for heads [tokens, heads, dim]."""
    cos, sin = rotary(heads, positions.unsqueeze(0))
    batched = heads.transpose(0, 1).unsqueeze(0)
    result: torch.Tensor = apply_rotary_pos_emb(batched, batched, cos, sin)[0]  # type: ignore[no-untyped-call]
    return result[0].transpose(0, 1)


@pytest.mark.parametrize("theta", [10000.0, 500042.0])
@pytest.mark.parametrize(
    "scaling", [None, RopeScaling("linear", 4.0, ORIGINAL), RopeScaling("dynamic", 4.0, ORIGINAL)]
)
def test_rotation_is_that_of_transformers(theta: float, scaling: RopeScaling | None) -> None:
    """Within the original context, whatever the order of the positions."""
    positions = torch.randperm(ORIGINAL)
    heads = torch.randn(ORIGINAL, HEADS, DIM)
    expected = turned(reference(theta, scaling), heads, positions)
    ours = Rotary(DIM, 4 * ORIGINAL, theta=theta, scaling=scaling, dtype=torch.float32)
    rotate_(heads, ours.at(positions))
    torch.testing.assert_close(heads, expected, rtol=0, atol=1e-6)


def test_linear_scaling_reaches_beyond_the_original_context() -> None:
    scaling = RopeScaling("linear", 4.0, ORIGINAL)
    positions = torch.arange(4 * ORIGINAL)
    heads = torch.randn(4 * ORIGINAL, HEADS, DIM)
    expected = turned(reference(10000.0, scaling), heads, positions)
    ours = Rotary(DIM, 4 * ORIGINAL, theta=10000.0, scaling=scaling, dtype=torch.float32)
    rotate_(heads, ours.at(positions))
    torch.testing.assert_close(heads, expected, rtol=0, atol=1e-6)


def test_dynamic_scaling_beyond_the_original_context_is_that_of_decoding() -> None:
    """transformers turns a token decoded at p by the frequencies of a sequence of p + 1."""
    scaling = RopeScaling("dynamic", 4.0, ORIGINAL)
    ours = Rotary(DIM, 4 * ORIGINAL, theta=10000.0, scaling=scaling, dtype=torch.float32)
    theirs = reference(10000.0, scaling)
    for place in (ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 3 * ORIGINAL):
        position = torch.tensor([place])
        heads = torch.randn(1, HEADS, DIM)
        expected = turned(theirs, heads, position)
        rotate_(heads, ours.at(position))
        torch.testing.assert_close(heads, expected, rtol=0, atol=2e-5)


def test_only_the_given_heads_are_turned() -> None:
    qkv = torch.randn(5, 4, DIM)
    before = qkv.clone()
    ours = Rotary(DIM, 8, theta=10000.0, scaling=None, dtype=torch.float32)
    rotate_(qkv[:, :3], ours.at(torch.arange(1, 6)))
    assert torch.equal(qkv[:, 3], before[:, 3])
    assert (qkv[:, :3] != before[:, :3]).any(-1).all()


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 7, 8, 12, 64, 71, 128])
def test_alibi_is_that_of_transformers(heads: int) -> None:
    """Bit for bit: slopes and products are rounded to bfloat16, then divided in float32."""
    positions, dim = 700, 64
    mask = torch.ones(1, positions, dtype=torch.long)
    expected = build_alibi_tensor(mask, heads, torch.float32).view(heads, positions) / 8.0
    assert torch.equal(bias_table(heads, dim, positions), expected)
    assert (slopes(heads) > 0).all()
