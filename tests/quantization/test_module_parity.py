"""Every linear layer of every Falcon in every mode, against bitsandbytes' own module in its place.

transformers' model runs with bitsandbytes' modules; what goes into each of them and comes out is
recorded, and a worker's layers of the same folder get the same. So errors do not add up over the
layers, and the limits are those of one. Run with `-rP`, it prints the error of each case;
docs/quantization.md has the worst.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from support.bitsandbytes_models import MODES, load_quantized, save_quantized
from support.checkpoints import SHAPES, VARIANTS, make_checkpoint
from tiercel.model.spec import FalconSpec
from tiercel.wire.options import EngineOptions
from tiercel.worker.worker import Worker

TOKENS = 40
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
# Rows of whole blocks of 64, as all published models have but these scaled-down ones. 71 heads of
# 8 stay: no small width of 71 heads is a multiple of 64.
HEAD_DIMS = {"7b": 64, "7b-resaved": 64, "rw-7b": 32}
LLM_INT8 = ("bitsandbytes-llm-int8", False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The checkpoint of a variant in a dtype, made once."""
    made: dict[tuple[str, str], Path] = {}

    def folder(variant: str, dtype: str) -> Path:
        key = (variant, dtype)
        if key not in made:
            made[key] = make_checkpoint(
                tmp_path_factory.mktemp("plain"),
                variant,
                dtype=dtype,
                head_dim=HEAD_DIMS.get(variant),
            )
        return made[key]

    return folder


def recorded(model: Any) -> dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """What each quantized module was given and what it answered, [tokens, in] and [tokens, out]."""
    calls: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(module: nn.Module, given: tuple[torch.Tensor], answer: torch.Tensor) -> None:
        assert module not in calls
        # Copies: transformers adds up in place.
        calls[module] = given[0].flatten(0, -2).clone(), answer.flatten(0, -2).clone()

    modules = [module for layer in model.transformer.h for module in theirs_of(layer)]
    hooks = [module.register_forward_hook(hook) for module in modules]
    draw = torch.Generator().manual_seed(3)
    model(torch.randint(512, (1, TOKENS), generator=draw))
    for each in hooks:
        each.remove()
    return calls


def theirs_of(layer: Any) -> Iterator[nn.Module]:
    yield layer.self_attention.query_key_value
    yield layer.self_attention.dense
    yield layer.mlp.dense_h_to_4h
    yield layer.mlp.dense_4h_to_h


def ours_of(layer: Any) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    yield layer.attention._heads._project
    yield layer.attention._output
    yield layer.mlp.up
    yield layer.mlp.down


def in_our_order(y: torch.Tensor, spec: FalconSpec) -> torch.Tensor:
    """From KV head by KV head, its queries, its key and its value, to all queries, keys, values."""
    grouped = y.view(len(y), spec.num_kv_heads, -1, spec.head_dim)
    parts = grouped[:, :, :-2], grouped[:, :, -2], grouped[:, :, -1]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.dtype == theirs.dtype
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("quantize", "double_quant"), [*MODES, LLM_INT8], ids=str)
@torch.inference_mode()
def test_every_layer(
    tmp_path: Path,
    folders: Callable[[str, str], Path],
    quantize: str,
    double_quant: bool,
    variant: str,
    dtype: str,
) -> None:
    folder = folders(variant, dtype)
    attention = "sdpa" if SHAPES[variant].alibi else "eager"
    model = load_quantized(folder, quantize, double_quant=double_quant, attention=attention)
    if double_quant:
        # The codes that bitsandbytes made: on a CPU some are the second nearest (test_bytes.py).
        folder = save_quantized(folder, tmp_path, quantize, double_quant=True)
    worker = Worker(
        EngineOptions(str(folder), quantize=quantize, double_quant=double_quant, threads=1)
    )
    spec = worker.load()
    calls = recorded(model)
    worst = 0.0
    for their_layer, our_layer in zip(model.transformer.h, worker.model.layers, strict=True):
        qkv, dense, up, down = theirs_of(their_layer)
        for theirs, ours in zip((qkv, dense, up, down), ours_of(our_layer), strict=True):
            x, answer = calls[theirs]
            for rows in (1, TOKENS):
                expected = answer[:rows]
                if quantize == "bitsandbytes-llm-int8":  # a row's result depends on its batch
                    expected = theirs(x[:rows])
                if theirs is qkv:
                    expected = in_our_order(expected, spec)
                elif theirs is up:
                    expected = functional.gelu(expected)
                worst = max(worst, error(ours(x[:rows]), expected))
    print(f"worst {quantize} {double_quant} {dtype} {variant} {worst:.1e}")
    assert worst < TOLERANCE[dtype]
