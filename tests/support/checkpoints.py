"""Tiny random Falcon checkpoints of every published shape, and transformers' model of them.

Owns test data only. Weights are scaled so that logits spread over several units and greedy ids
differ from step to step; everything is a function of the seed.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import FalconConfig, FalconForCausalLM

DIALECTS = ("falcon", "RefinedWeb", "RefinedWebModel")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What a config.json of the old dialects calls the fields of the new one.
OLD_KEYS = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_kv_heads": "n_head_kv",
}


@dataclass(frozen=True)
class Shape:
    """One published Falcon, scaled down; flags and ratios as in the real config.json."""

    heads: int
    kv_heads: int
    head_dim: int
    new_architecture: bool = False
    multi_query: bool = True
    parallel: bool = True
    bias: bool = False
    alibi: bool = False
    norms: int | None = None
    rope_theta: float = 10000.0
    tied: bool = True
    max_positions: int | None = None  # None: the key is not in config.json

    @property
    def hidden(self) -> int:
        return self.heads * self.head_dim


SHAPES: Mapping[str, Shape] = {
    "7b": Shape(heads=5, kv_heads=1, head_dim=16),
    "7b-71": Shape(heads=71, kv_heads=1, head_dim=8),
    "7b-resaved": Shape(
        heads=5, kv_heads=5, head_dim=16
    ),  # num_kv_heads is wrong, multi_query wins
    "40b": Shape(heads=8, kv_heads=2, head_dim=16, new_architecture=True),
    "180b": Shape(heads=24, kv_heads=8, head_dim=8, new_architecture=True, tied=False),
    "11b": Shape(
        heads=8,
        kv_heads=2,
        head_dim=16,
        new_architecture=True,
        norms=1,
        rope_theta=500042.0,
        tied=False,
        max_positions=8192,
    ),
    "rw-1b": Shape(
        heads=4, kv_heads=4, head_dim=16, multi_query=False, parallel=False, bias=True, alibi=True
    ),
    "rw-7b": Shape(
        heads=6, kv_heads=6, head_dim=16, multi_query=False, parallel=False, bias=True, alibi=True
    ),
}
VARIANTS = tuple(SHAPES)


def make_checkpoint(
    folder: Path,
    variant: str = "7b",
    *,
    dtype: str = "float32",
    seed: int = 0,
    layers: int = 2,
    dialect: str = "falcon",
    tied: bool | None = None,
    prefix: bool = True,
    shards: int = 1,
    tokenizer: bool = False,
    vocab_size: int = 512,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    max_positions: int | None = None,
    weights: str = "safetensors",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.json, generation_config.json and weights of one variant; return `folder`.

    `dialect` is the model_type and the key style. `tied` None means as in the real model. `prefix`
    False drops `transformer.` from the names. `shards` > 1 writes an index. `weights` is
    "safetensors" or "bin" (pickle). `heads`, `kv_heads`, `head_dim` and `max_positions` override
    the variant; `extra` is merged into config.json last, and None in it removes the key.
    """
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    shape = _shape(variant, **sizes, tied=tied, max_positions=max_positions)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(shape, dialect, layers, vocab_size, dtype) | dict(extra or {})
    write_json(
        folder / "config.json", {key: value for key, value in config.items() if value is not None}
    )
    write_json(folder / "generation_config.json", {"bos_token_id": 11, "eos_token_id": 11})
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor.to(DTYPES[dtype])
        for name, tensor in _random_tensors(shape, layers, vocab_size, generator)
    }
    if not prefix:
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    _save(folder, tensors, shards, weights)
    if tokenizer:
        write_tokenizer(folder, vocab_size)
    return folder


def _shape(variant: str, **given: Any) -> Shape:
    """The variant's shape, with what is not None in its place."""
    known = SHAPES[variant]
    shape = replace(known, **{name: value for name, value in given.items() if value is not None})
    if given["kv_heads"] is None and known.kv_heads == known.heads:
        shape = replace(shape, kv_heads=shape.heads)
    return shape


def _config(shape: Shape, dialect: str, layers: int, vocab_size: int, dtype: str) -> dict[str, Any]:
    """What config.json of the published model says, in the given dialect."""
    config: dict[str, Any] = {
        "model_type": dialect,
        "architectures": ["FalconForCausalLM" if dialect == "falcon" else "RWForCausalLM"],
        "alibi": shape.alibi,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "bias": shape.bias,
        "bos_token_id": 11,
        "eos_token_id": 11,
        "hidden_dropout": 0.0,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "parallel_attn": shape.parallel,
        "torch_dtype": dtype,
        "transformers_version": "4.33.2",
        "use_cache": True,
        "vocab_size": vocab_size,
    }
    if not shape.tied:
        config["tie_word_embeddings"] = False
    if shape.norms is not None:
        config["num_ln_in_parallel_attn"] = shape.norms
    if shape.rope_theta != 10000.0:
        config["rope_theta"] = shape.rope_theta
    if shape.max_positions is not None:
        config["max_position_embeddings"] = shape.max_positions
    if shape.new_architecture or shape.kv_heads == shape.heads:
        config["num_kv_heads"] = shape.kv_heads
    if dialect == "falcon" or not shape.new_architecture:
        config["multi_query"] = shape.multi_query or shape.new_architecture
    if dialect == "falcon" or (dialect == "RefinedWeb") != shape.new_architecture:
        config["new_decoder_architecture"] = shape.new_architecture
    if dialect != "falcon":
        config = {OLD_KEYS.get(key, key): value for key, value in config.items()}
        config["auto_map"] = {"AutoModelForCausalLM": "modelling_RW.RWForCausalLM"}
    return config


def _random_tensors(
    shape: Shape, layers: int, vocab_size: int, generator: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in float32. Matrices have a standard deviation of gain / sqrt(inputs)."""

    def matrix(rows: int, columns: int, gain: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * (gain / math.sqrt(columns))

    def vector(size: int, centre: float) -> torch.Tensor:
        return centre + 0.1 * torch.randn(size, generator=generator)

    hidden = shape.hidden
    kv_heads = shape.kv_heads if shape.new_architecture or not shape.multi_query else 1
    linears = {
        "self_attention.query_key_value": (
            (shape.heads + 2 * kv_heads) * shape.head_dim,
            hidden,
            2.0,
        ),
        "self_attention.dense": (hidden, hidden, 4.0),
        "mlp.dense_h_to_4h": (4 * hidden, hidden, 1.0),
        "mlp.dense_4h_to_h": (hidden, 4 * hidden, 4.0),
    }
    if not shape.parallel:
        norms = ["input_layernorm", "post_attention_layernorm"]
    elif shape.new_architecture and shape.norms != 1:
        norms = ["ln_attn", "ln_mlp"]
    else:
        norms = ["input_layernorm"]

    yield "transformer.word_embeddings.weight", matrix(vocab_size, hidden, 2.0)
    for layer in range(layers):
        for name, (rows, columns, gain) in linears.items():
            yield f"transformer.h.{layer}.{name}.weight", matrix(rows, columns, gain)
            if shape.bias:
                yield f"transformer.h.{layer}.{name}.bias", vector(rows, 0.0)
        for name in norms:
            yield f"transformer.h.{layer}.{name}.weight", vector(hidden, 1.0)
            yield f"transformer.h.{layer}.{name}.bias", vector(hidden, 0.0)
    yield "transformer.ln_f.weight", vector(hidden, 1.0)
    yield "transformer.ln_f.bias", vector(hidden, 0.0)
    if not shape.tied:
        yield "lm_head.weight", matrix(vocab_size, hidden, 2.0)


def _save(folder: Path, tensors: dict[str, torch.Tensor], shards: int, weights: str) -> None:
    stem, suffix = (
        ("model", "safetensors") if weights == "safetensors" else ("pytorch_model", "bin")
    )
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"{stem}.{suffix}"
        if shards > 1:
            file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{suffix}"
        part = {name: tensors[name] for name in names[shard::shards]}
        if weights == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / f"{stem}.{suffix}.index.json", index)


def load_reference(folder: Path, *, attention: str = "eager") -> FalconForCausalLM:
    """Return transformers' model of a checkpoint made here, in any dialect, in its own dtype."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    old_type = fields.pop("model_type")
    fields.pop("auto_map", None)
    dtype = fields.pop("torch_dtype")
    fields = {{old: new for new, old in OLD_KEYS.items()}.get(k, k): v for k, v in fields.items()}
    fields.setdefault("new_decoder_architecture", old_type == "RefinedWeb")
    config = FalconConfig(**fields | {"attn_implementation": attention})
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    tensors = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
        for name, tensor in tensors.items()
    }
    tensors.setdefault("lm_head.weight", tensors["transformer.word_embeddings.weight"])
    model = FalconForCausalLM(config)
    torch.nn.Module.to(model, DTYPES[dtype])
    model.load_state_dict(tensors, strict=True)
    model.train(False)
    return model


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a byte-level BPE tokenizer in Falcon's format of at most `vocab_size` (>= 268) tokens.

    Ids 0 to 11 are Falcon's special tokens; <|endoftext|> is 11, as in the real vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [">>TITLE<<", ">>ABSTRACT<<", ">>INTRODUCTION<<", ">>SUMMARY<<", ">>COMMENT<<"]
    special += [">>ANSWER<<", ">>QUESTION<<", ">>DOMAIN<<", ">>PREFIX<<", ">>SUFFIX<<"]
    special += [">>MIDDLE<<", "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|endoftext|>",
            "add_prefix_space": False,
            "model_max_length": 2048,
        },
    )
    write_json(folder / "special_tokens_map.json", {"eos_token": "<|endoftext|>"})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_TEXT = (
    "The falcon is the fastest animal in the world; the male of the peregrine is called a tiercel.",
    "A young hawk that is taken from the nest before it can fly is an eyas, and it learns to hunt.",
    "They fly high over the fields and the water, and then they fall on the birds below them.",
    "What is the answer to the question that was asked of you when you were there with the others?",
    "It has one hundred and twenty three feathers, naïve façade, 鳥, птица, طائر, and some 🦅 too.",
)
