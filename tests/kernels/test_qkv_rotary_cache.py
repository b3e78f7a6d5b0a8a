"""QKV split, rotary positions and cache write against the specification."""

import pytest
import torch

from support.kernels import CANARY, DEVICE, DTYPES, Allocations
from support.paged import ELEVEN, MULTI_QUERY_ALIBI, RANK, SEVEN, SHAPES, WHOLE, Shape, same_bits
from tiercel_kernels.fused.qkv_rotary_cache import qkv_rotary_cache
from tiercel_kernels.reference import qkv_rotary_cache as reference

POSITIONS = 4200
# One rounding of numbers up to about 6.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
Rotation = tuple[torch.Tensor, torch.Tensor]


def _rotation(shape: Shape, dtype: torch.dtype) -> Rotation | None:
    """Halves of tables of whole heads, so that rows have a stride."""
    if shape.alibi:
        return None
    inverse = 10000.0 ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = torch.arange(POSITIONS).unsqueeze(1) * torch.cat((inverse, inverse))
    cos, sin = angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype)
    return cos[:, : shape.head_dim // 2], sin[:, shape.head_dim // 2 :]


def _memory(shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """As the server's: a token's heads side by side."""
    size = (2, 6, 16, shape.kv_heads, shape.head_dim)
    return torch.full(size, CANARY, dtype=dtype, device=DEVICE)


def _both(
    shape: Shape, qkv: torch.Tensor, positions: list[int], slots: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and memory of the kernel, queries and memory of the specification."""
    rotation = _rotation(shape, qkv.dtype)
    results = []
    for op in (qkv_rotary_cache, reference.qkv_rotary_cache):
        memory = _memory(shape, qkv.dtype)
        keys, values = memory.unbind()
        numbers = (torch.tensor(each, device=DEVICE) for each in (positions, slots))
        results += [op(qkv, rotation, *numbers, keys, values), memory]
    return results[0], results[1], results[2], results[3]


def _qkv(shape: Shape, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    columns = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return torch.randn(tokens, columns).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_equals_the_specification(shape: Shape, dtype: torch.dtype) -> None:
    """Neighbours in a block, the last place of a block, padding, the last position."""
    qkv = _qkv(shape, 6, dtype)
    before = qkv.clone()
    positions, slots = [0, 1, 4199, 77, 0, 5], [16, 17, 95, 47, -1, 32]
    with Allocations() as made:
        queries, memory, expected, expected_memory = _both(shape, qkv, positions, slots)
    assert made.intact()
    torch.testing.assert_close(queries, expected, rtol=0, atol=TOLERANCES[dtype])
    torch.testing.assert_close(memory, expected_memory, rtol=0, atol=TOLERANCES[dtype])
    assert (queries[4] == 0).all()  # padding
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("shape", WHOLE, ids=lambda shape: shape.name)
def test_all_heads_of_a_model(shape: Shape) -> None:
    qkv = _qkv(shape, 2, torch.float16)
    queries, memory, expected, expected_memory = _both(shape, qkv, [4199, 3], [95, 17])
    torch.testing.assert_close(queries, expected, rtol=0, atol=TOLERANCES[torch.float16])
    torch.testing.assert_close(memory, expected_memory, rtol=0, atol=TOLERANCES[torch.float16])


@pytest.mark.parametrize("shape", [SEVEN, ELEVEN, MULTI_QUERY_ALIBI], ids=lambda s: s.name)
def test_writes_its_slots_and_no_others(shape: Shape) -> None:
    slots = [31, 80, -1]
    _, memory, _, _ = _both(shape, _qkv(shape, 3, torch.float32), [3, 4, -7], slots)
    written = (memory != CANARY).any(-1)  # [2, blocks, block_tokens, kv_heads]
    expected = torch.zeros_like(written)
    expected[:, 1, 15] = True
    expected[:, 5, 0] = True
    assert torch.equal(written, expected)


def test_values_and_the_first_position_pass_unchanged() -> None:
    qkv = _qkv(RANK, 2, torch.float16)
    queries, memory, _, _ = _both(RANK, qkv, [0, 9], [0, 1])
    heads = qkv.view(2, -1, RANK.head_dim)
    assert torch.equal(queries[0], heads[0, : RANK.heads])
    assert torch.equal(memory[1, 0, :2, 0], heads[:, -1])


def test_a_token_has_the_same_bits_whatever_the_batch() -> None:
    qkv = _qkv(SEVEN, 4, torch.float32)
    together, memory, _, _ = _both(SEVEN, qkv, [5, 6, 7, 8], [2, 3, 4, 5])
    alone, own_memory, _, _ = _both(SEVEN, qkv[2:3], [7], [4])
    assert torch.equal(alone, together[2:3])
    assert same_bits(own_memory[:, 0, 4], memory[:, 0, 4])


def test_rows_of_the_projection_may_have_a_stride() -> None:
    """As where one GEMM makes the MLP's input beside queries, keys and values."""
    wide = _qkv(SEVEN, 3, torch.float32)
    columns = (RANK.heads + 2) * RANK.head_dim
    queries, memory, expected, expected_memory = _both(
        RANK, wide[:, 64 : 64 + columns], [1, 2, 3], [0, 20, 40]
    )
    torch.testing.assert_close(queries, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(memory, expected_memory, rtol=0, atol=1e-6)


def test_the_cache_in_either_order_of_memory() -> None:
    """A block's tokens by head gives the same keys and values."""
    qkv = _qkv(ELEVEN, 3, torch.float32)
    numbers = [torch.tensor(each, device=DEVICE) for each in ([3, 4, 5], [31, 80, 2])]
    served = _memory(ELEVEN, torch.float32)
    by_head = served.transpose(2, 3).contiguous()
    for memory in (served, by_head.transpose(2, 3)):
        qkv_rotary_cache(qkv, _rotation(ELEVEN, torch.float32), *numbers, *memory.unbind())
    assert by_head.stride() != served.stride()
    assert torch.equal(by_head.transpose(2, 3), served)
