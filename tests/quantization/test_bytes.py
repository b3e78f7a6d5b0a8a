"""The bytes we make are those that bitsandbytes makes, and stand for the same numbers."""

from dataclasses import replace

import pytest
import torch

from tiercel.quantization import stored as stored_weights
from tiercel.quantization.bitsandbytes_package import import_bitsandbytes
from tiercel.quantization.stored import Nested, StoredFourBit, StoredInt8
from tiercel.quantization.tables import dynamic_table, four_bit_table

bnb = import_bitsandbytes().functional

# out, in: rows of whole blocks, rows that cut them, an odd number of weights, many chunks.
SHAPES = [(64, 128), (320, 192), (71, 568), (3, 5), (24, 4544)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_weights, "CHUNK_NUMBERS", 1 << 14)


def weight_of(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    weight[0] = 0  # a row, or blocks, without any number
    return weight


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_tables(kind: str) -> None:
    assert torch.equal(four_bit_table(kind), bnb.get_4bit_type(kind, device="cpu"))
    assert torch.equal(dynamic_table(), bnb.create_dynamic_map())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = weight_of(shape, dtype)
    ours = StoredInt8.quantize(weight)
    codes, absmax, _ = bnb.int8_vectorwise_quant(weight.half())
    assert torch.equal(ours.absmax, absmax)
    assert torch.equal(ours.codes[1:], codes[1:])  # 0 / 0 in theirs
    assert not ours.codes[0].any()
    restored = bnb.int8_vectorwise_dequant(codes, absmax)
    torch.testing.assert_close(ours.rows(0, shape[0])[1:], restored[1:], rtol=1e-5, atol=0)


def test_int8_beyond_float16() -> None:
    weight = torch.tensor([[1e5, -2e5], [1.0, 0.5]])
    ours = StoredInt8.quantize(weight)
    torch.testing.assert_close(ours.rows(0, 2), weight, rtol=5e-3, atol=1000)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_four_bits(
    shape: tuple[int, int], dtype: torch.dtype, double_quant: bool, kind: str
) -> None:
    weight = weight_of(shape, dtype)
    ours = StoredFourBit.quantize(weight, kind, double_quant=double_quant)
    codes, state = bnb.quantize_4bit(weight, compress_statistics=double_quant, quant_type=kind)
    assert torch.equal(ours.codes, codes.view(-1))
    if double_quant:
        assert isinstance(ours.statistics, Nested)
        assert torch.equal(ours.statistics.absmax, state.state2.absmax)
        assert ours.statistics.offset == state.offset.item()
        check_nested_codes(
            ours.statistics, state.absmax, bnb.quantize_4bit(weight, quant_type=kind)[1].absmax
        )
        ours = replace(ours, statistics=replace(ours.statistics, codes=state.absmax))
    else:
        assert torch.equal(ours.absmax(), state.absmax)
    state.dtype = torch.float32
    if shape[1] % 2 == 0:  # bitsandbytes' own kernel needs it
        restored = bnb.dequantize_4bit(codes, state)
        torch.testing.assert_close(ours.numbers(), restored, rtol=1e-6, atol=1e-7)


def check_nested_codes(ours: Nested, theirs: torch.Tensor, absmax: torch.Tensor) -> None:
    """bitsandbytes' CPU kernel finds a code by a table of 65,536 places, so that some are the
    second nearest; its CUDA and its plain torch kernels compare with the middles, as we do.
    """
    assert (ours.codes != theirs).float().mean() < 0.02 or not ours.absmax.any()
    target = absmax.double()
    error = (ours.values().double() - target).abs()
    assert (error <= (replace(ours, codes=theirs).values().double() - target).abs() + 1e-6).all()


@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "double"])
def test_rows_in_another_order_keep_their_numbers(double_quant: bool) -> None:
    weight = weight_of((96, 256), torch.float32)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    stored = StoredFourBit.quantize(weight, "nf4", double_quant=double_quant)
    assert torch.equal(stored.reordered(order).numbers(), stored.numbers()[order])
    rows = StoredInt8.quantize(weight)
    assert torch.equal(rows.reordered(order).rows(0, 96), rows.rows(0, 96)[order])
