"""transformers' Falcon with bitsandbytes' modules in it, and checkpoints saved from such a model.

Quantizing and saving are bitsandbytes' own code; only the files' names and config.json are ours.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import FalconForCausalLM

from support.checkpoints import load_reference, write_json
from tiercel.quantization.bitsandbytes_package import import_bitsandbytes

bnb = import_bitsandbytes()
functional = bnb.functional
_dequantize_4bit_compute = importlib.import_module(
    "bitsandbytes.backends.default.ops"
)._dequantize_4bit_compute

# As --quantize says it, and whether statistics are quantized, too.
MODES = (
    ("bitsandbytes", False),
    ("bitsandbytes-nf4", False),
    ("bitsandbytes-nf4", True),
    ("bitsandbytes-fp4", False),
    ("bitsandbytes-fp4", True),
)


class Linear4bit(bnb.nn.Linear4bit):
    """bitsandbytes' layer, by its generic code where its CPU kernel is wrong.

    With AVX-512 that takes every row for whole blocks (bitsandbytes 0.50.2): numbers are a quarter
    off where the width is no multiple of 64. Every published Falcon's is one. What it has for
    AVX512_BF16 is not taken: it rounds activations of every type to bfloat16, which is 4e-3 off in
    float32, and refuses some shapes.
    """

    support_avx512bf16_for_cpu: bool  # says whether it is

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: Any = self.weight.quant_state
        if self.in_features % state.blocksize == 0:
            self.support_avx512bf16_for_cpu = False
            return super().forward(x)  # type: ignore[no-any-return]
        absmax = state.absmax
        if state.nested:
            absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
        codes = self.weight.data.reshape(-1)
        shape, code = tuple(state.shape), state.code
        weight = _dequantize_4bit_compute(codes, absmax, code, state.blocksize, shape, x.dtype)
        return nn.functional.linear(x, weight, self.bias)


def quantized_module(
    quantize: str, weight: torch.Tensor, bias: torch.Tensor | None, *, double_quant: bool = False
) -> nn.Module:
    """bitsandbytes' layer of this weight [out, in], for activations of the weight's dtype.

    Weight-only int8 is what its Linear8bitLt does in training on a CPU: the numbers of its codes
    times activations as they are. Otherwise the same layer quantizes activations, too: LLM.int8.
    """
    out, width = weight.shape
    layer: Any
    if quantize in ("bitsandbytes", "bitsandbytes-llm-int8"):
        layer = bnb.nn.Linear8bitLt(
            width, out, bias is not None, has_fp16_weights=False, threshold=6.0
        )
        layer.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False)
    else:
        layer = Linear4bit(
            width, out, bias is not None,
            compute_dtype=weight.dtype, compress_statistics=double_quant,
            quant_type=quantize.rpartition("-")[2],
        )  # fmt: skip
        layer.weight = bnb.nn.Params4bit(
            weight.clone(), requires_grad=False, compress_statistics=double_quant,
            quant_type=quantize.rpartition("-")[2], module=layer,
        )  # fmt: skip
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    layer.train(quantize == "bitsandbytes")
    return layer.to("cpu")  # type: ignore[no-any-return]  # quantizes


def load_quantized(
    folder: Path, quantize: str, *, double_quant: bool = False, attention: str = "eager"
) -> FalconForCausalLM:
    """The checkpoint's model with every linear layer but the head quantized."""
    model = load_reference(folder, attention=attention)
    for layer in model.transformer.h:
        for parent, name in (
            (layer.self_attention, "query_key_value"), (layer.self_attention, "dense"),
            (layer.mlp, "dense_h_to_4h"), (layer.mlp, "dense_4h_to_h"),
        ):  # fmt: skip
            plain = getattr(parent, name)
            bias = None if plain.bias is None else plain.bias.data
            module = quantized_module(quantize, plain.weight.data, bias, double_quant=double_quant)
            setattr(parent, name, module)
    return model


def save_quantized(
    source: Path, target: Path, quantize: str, *, double_quant: bool = False
) -> Path:
    """Write a plain checkpoint's folder anew as bitsandbytes saves it, with its config."""
    eight = quantize == "bitsandbytes"
    mode = "bitsandbytes-llm-int8" if eight else quantize
    model = load_quantized(source, mode, double_quant=double_quant)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("tie_word_embeddings", True):
        del tensors["lm_head.weight"]
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    write_json(
        target / "config.json", config | {"quantization_config": stated(quantize, double_quant)}
    )
    for path in source.glob("*.json"):
        if path.name != "config.json":
            (target / path.name).write_bytes(path.read_bytes())
    return target


def stated(quantize: str, double_quant: bool = False) -> dict[str, Any]:
    """The quantization_config that transformers writes."""
    eight = quantize == "bitsandbytes"
    return {
        "_load_in_4bit": not eight,
        "_load_in_8bit": eight,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4" if quantize.endswith("nf4") else "fp4",
        "bnb_4bit_use_double_quant": double_quant,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": not eight,
        "load_in_8bit": eight,
        "quant_method": "bitsandbytes",
    }
