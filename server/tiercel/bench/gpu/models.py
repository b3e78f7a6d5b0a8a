"""Random models in true shapes: a config.json, and weights that are made on the device itself."""

import json
from pathlib import Path
from typing import Any

import torch

from tiercel.model.config import expected_tensors
from tiercel.model.spec import FalconSpec
from tiercel.parallel.part import Part
from tiercel.parallel.take import take
from tiercel.quantization.stored import Stored, StoredFourBit, StoredInt8
from tiercel.quantization.tables import BLOCK, four_bit_table
from tiercel_kernels.benchmark.bounds import FalconShape

_STRETCH = 1 << 22
_BYTES_DEVIATION = 73.9  # of int8 codes that are all as likely
POSITIONS = 4096  # more than a 2,048-token prompt and what follows it; weights do not depend on it


def config_of(shape: FalconShape, dtype: str = "bfloat16") -> dict[str, Any]:
    """What config.json of a model of this shape says."""
    grouped = 1 < shape.kv_heads < shape.heads
    config: dict[str, Any] = {
        "model_type": "falcon",
        "architectures": ["FalconForCausalLM"],
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "ffn_hidden_size": shape.ffn,
        "vocab_size": shape.vocab,
        "new_decoder_architecture": grouped,
        "multi_query": shape.kv_heads == 1,
        "parallel_attn": shape.parallel,
        "alibi": shape.alibi,
        "bias": not shape.parallel,
        "tie_word_embeddings": shape.tied,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 11,
        "eos_token_id": 11,
        "torch_dtype": dtype,
    }
    if grouped:
        config["num_kv_heads"] = shape.kv_heads
        config["num_ln_in_parallel_attn"] = shape.norms
    return config


def write_config(folder: Path, shape: FalconShape, dtype: str = "bfloat16") -> Path:
    """A model's folder without weights and tokenizer: enough for an engine that is given both."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config_of(shape, dtype), indent=2)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


class RandomCheckpoint:
    """See model.weights.Weights. A tensor depends on the seed and its name only.

    Matrices keep the variance of what runs through them; norms are the identity. With `quantize`,
    a mode of --quantize, the layers' matrices are stored that way: bytes on the host, where a
    server has them too before they go to the device.
    """

    def __init__(
        self,
        spec: FalconSpec,
        device: torch.device,
        dtype: torch.dtype,
        seed: int = 0,
        quantize: str | None = None,
    ) -> None:
        self._quantize = quantize
        self._shapes = expected_tensors(spec)
        self._seeds = {name: seed * 1_000_003 + i for i, name in enumerate(self._shapes)}
        self._device = device
        self._dtype = dtype

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    @property
    def total_bytes(self) -> int:
        return sum(self.nbytes(name) for name in self._shapes)

    def nbytes(self, name: str) -> int:
        return torch.Size(self._shapes[name]).numel() * self._dtype.itemsize

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def is_stored(self, name: str) -> bool:
        """All matrices of the layers, or none."""
        return self._quantize is not None and name.startswith("h.") and len(self.shape(name)) == 2

    def stored(self, name: str) -> Stored:
        """Made anew at every call. Raises KeyError for what is not stored quantized."""
        if not self.is_stored(name):
            raise KeyError(name)
        out, width = self._shapes[name]
        deviation, mode = width**-0.5, self._quantize or ""
        if mode == "bitsandbytes":
            codes = self._bytes(name, out * width).view(torch.int8).view(out, width)
            return StoredInt8(codes, torch.full((out,), deviation * 127 / _BYTES_DEVIATION))
        kind = mode.rpartition("-")[2]
        absmax = deviation / float(four_bit_table(kind).std(correction=0))
        blocks = torch.full((out * width // BLOCK,), absmax)
        return StoredFourBit(kind, (out, width), self._bytes(name, out * width // 2), blocks)

    def _bytes(self, name: str, count: int) -> torch.Tensor:
        """uint8 [count]: a random stretch again and again, as fast as memory is copied."""
        generator = torch.Generator().manual_seed(self._seeds[name])
        stretch = min(count, _STRETCH)
        made = torch.randint(0, 256, (stretch,), generator=generator, dtype=torch.uint8)
        return made.repeat(-(-count // stretch))[:count]

    def tensor(self, name: str) -> torch.Tensor:
        """Made anew at every call, on the device."""
        shape = self._shapes[name]
        if len(shape) == 1:
            make = torch.zeros if name.endswith("bias") else torch.ones
            return make(shape, dtype=self._dtype, device=self._device)
        generator = torch.Generator(self._device).manual_seed(self._seeds[name])
        made = torch.randn(shape, generator=generator, dtype=self._dtype, device=self._device)
        return made.div_(shape[1] ** 0.5)

    def part(self, name: str, part: Part) -> torch.Tensor:
        """Of the whole, made anew."""
        index = torch.tensor(part.indices(), device=self._device)
        return take(self.tensor(name), part.axis, index)
