"""`-m support.published_launches`: as JSON, the binaries that serving a published model launches on
sm_90, and those that `make kernels-compile` builds for it. See support.launches.

Memory is never touched: the tensors have true sizes and no contents.
"""

import itertools
import json

import torch

from support.launches import Binary, Launches, binary
from tiercel_kernels.benchmark.bounds import SHAPES, FalconShape
from tiercel_kernels.choose import fused_ops
from tiercel_kernels.compile_all import cases, is_aligned, modules
from tiercel_kernels.compile_case import CompileCase
from tiercel_kernels.linear_cases import layers_of
from tiercel_kernels.reference.nf4_dequantize import FourBitWeight
from tiercel_kernels.reference.penalties import Penalties
from tiercel_kernels.reference.sample import SampleParams
from tiercel_kernels.tuning.decode_attention import unit_tokens

ARCHITECTURE = 90
OPS = fused_ops()
ROWS = (1, 17)  # of a batch: one for each height of a tile
BLOCK_TOKENS = 16


def four_bit(out: int, width: int, nested: bool) -> FourBitWeight:
    codes, blocks = torch.empty(out * width // 2, dtype=torch.uint8), out * width // 64
    table = torch.empty(16)
    if not nested:
        return FourBitWeight(codes, table, torch.empty(blocks), out, width)
    outer, values = torch.empty(-(-blocks // 256)), torch.empty(256)
    inner = torch.empty(blocks, dtype=torch.uint8)
    return FourBitWeight(codes, table, inner, out, width, outer, values, 0.5)


def linears(shape: FalconShape, rows: int, dtype: torch.dtype) -> None:
    for layer in layers_of(shape):
        x = torch.empty(rows, layer.width, dtype=dtype)
        bias = torch.empty(layer.out, dtype=dtype) if layer.bias else None
        codes = torch.empty(layer.out, layer.width, dtype=torch.int8)
        plain = torch.empty(layer.out, layer.width, dtype=dtype)
        OPS.int8_linear(x, codes, torch.empty(layer.out), bias, layer.gelu)
        for nested in (False, True):
            weight = four_bit(layer.out, layer.width, nested)
            OPS.nf4_linear(x, weight, bias, layer.gelu)
            OPS.nf4_dequantize(weight, plain)
        OPS.skinny_linear(x, plain, bias, layer.gelu)


def attention(shape: FalconShape, rows: int, dtype: torch.dtype) -> None:
    """The cache as the server has it: a token's heads side by side."""
    memory = torch.empty(2, 8, BLOCK_TOKENS, shape.kv_heads, shape.head_dim, dtype=dtype)
    keys, values = memory.unbind()
    slopes = torch.empty(shape.heads) if shape.alibi else None
    half = torch.empty(64, shape.head_dim // 2, dtype=dtype)
    rotation = None if shape.alibi else (half, half)
    places = torch.zeros(rows, dtype=torch.int64)
    qkv = torch.empty(rows, shape.qkv_size, dtype=dtype)
    queries = OPS.qkv_rotary_cache(qkv, rotation, places, places, keys, values)
    contexts, out = torch.zeros(rows, dtype=torch.int32), torch.empty_like(queries)
    tables = torch.zeros(rows, 9, dtype=torch.int32)
    plan = OPS.decode_plan(contexts, unit_tokens(shape.group), 4)
    OPS.decode_attention(queries, keys, values, tables, contexts, plan, out, slopes)
    firsts = torch.arange(rows + 1, dtype=torch.int32)
    OPS.prefill_attention(queries, keys, values, tables, contexts, firsts, 1, out, slopes)


def norms(shape: FalconShape, rows: int, dtype: torch.dtype) -> None:
    """The first, the following and the last of a model; and behind one output GEMM."""
    x, pair = (
        torch.empty(rows, shape.hidden, dtype=dtype),
        (torch.empty(shape.hidden).to(dtype),) * 2,
    )
    branches = (0, 1, 2) if shape.parallel else (0, 1)
    for count, wanted in itertools.product(branches, {1, shape.norms}):
        OPS.residual_norm(x, (x,) * count, (pair,) * wanted, 1e-5)
    bias = None if shape.parallel else torch.empty(shape.ffn, dtype=dtype)
    OPS.gelu(torch.empty(rows, shape.ffn, dtype=dtype), bias)


def draws(shape: FalconShape, rows: int, dtype: torch.dtype) -> None:
    integers = torch.zeros(rows, dtype=torch.int32)
    reals = torch.ones(rows)
    wide, long = reals.double(), integers.long()
    params = SampleParams(reals, integers, wide, wide, integers, long, long)
    logits = torch.empty(rows, shape.vocab)
    OPS.sample(logits.to(dtype), params)
    tokens = torch.zeros(rows, 2048, dtype=torch.int32)
    OPS.penalties(logits, tokens, integers, integers, Penalties(reals, reals, reals, reals))
    OPS.vocab_mask(logits, torch.zeros(rows, shape.vocab // 32, dtype=torch.int32))
    OPS.sample(logits, params)


def built(case: CompileCase) -> Binary:
    """What is compiled for the case."""
    types = {name: case.signature.get(name, "constexpr") for name in case.kernel.arg_names}
    aligned = {
        (place,): "16"
        for place, each in enumerate(case.kernel.params)
        if is_aligned(each, types, case)
    }
    options = {"enable_fp_fusion": True, **case.options}
    options |= {"num_warps": case.num_warps, "num_stages": case.num_stages}
    return binary(case.kernel.__name__, types, aligned, case.constexprs, options)


if __name__ == "__main__":
    listed = [
        built(each) for name in modules() for each in cases(name) if ARCHITECTURE in each.targets
    ]
    launches = Launches(ARCHITECTURE)
    for shape, rows in itertools.product(SHAPES.values(), ROWS):
        for dtype in (torch.bfloat16, torch.float16):
            for launch in (linears, attention, norms, draws):
                launch(shape, rows, dtype)
    print(json.dumps({"launched": sorted(launches.binaries), "built": sorted(listed)}))
