"""A random Falcon checkpoint of any size in the 7B style, for measuring speed and nothing else.

It borrows the tokenizer of eyas, so the ids above that vocabulary are only there to give the head
its true size: their embeddings are zero, as is the one of the end of text, and greedy decoding over
a tied head therefore never picks them. Text goes on until the length limit.
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENIZER_FOLDER = Path(__file__).parents[1] / "eyas"
END_OF_TEXT_ID = 11  # as in Falcon's own tokenizer


@dataclass(frozen=True)
class RandomModel:
    """The numbers of a random checkpoint. The defaults make 146 million parameters."""

    hidden_size: int = 768
    heads: int = 12
    layers: int = 16
    vocab_size: int = 65_024
    context_tokens: int = 2_048
    dtype: str = "bfloat16"
    seed: int = 0

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["FalconForCausalLM"],
            "model_type": "falcon",
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_tokens,
            "multi_query": True,
            "parallel_attn": True,
            "new_decoder_architecture": False,
            "alibi": False,
            "bias": False,
            "tie_word_embeddings": True,
            "layer_norm_epsilon": 1e-5,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "torch_dtype": self.dtype,
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint and its shape."""
        hidden, head = self.hidden_size, self.hidden_size // self.heads
        shapes: dict[str, tuple[int, ...]] = {
            "transformer.word_embeddings.weight": (self.vocab_size, hidden)
        }
        for layer in range(self.layers):
            at = f"transformer.h.{layer}."
            shapes |= {
                f"{at}input_layernorm.weight": (hidden,),
                f"{at}input_layernorm.bias": (hidden,),
                f"{at}self_attention.query_key_value.weight": (hidden + 2 * head, hidden),
                f"{at}self_attention.dense.weight": (hidden, hidden),
                f"{at}mlp.dense_h_to_4h.weight": (4 * hidden, hidden),
                f"{at}mlp.dense_4h_to_h.weight": (hidden, 4 * hidden),
            }
        return shapes | {
            "transformer.ln_f.weight": (hidden,),
            "transformer.ln_f.bias": (hidden,),
        }

    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes().values())


def make_random_checkpoint(
    folder: Path, model: RandomModel | None = None, tokenizer: Path = TOKENIZER_FOLDER
) -> Path:
    """Write config, weights and tokenizer into `folder`, which is made; the folder."""
    import torch
    from safetensors.torch import save_file

    model = RandomModel() if model is None else model
    dtype = getattr(torch, model.dtype)
    generator = torch.Generator().manual_seed(model.seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in model.shapes().items():
        if name.endswith("word_embeddings.weight"):
            weight = torch.randn(shape, generator=generator) * 0.1
            weight[END_OF_TEXT_ID] = 0
            weight[_tokenizer_size(tokenizer) :] = 0
        elif len(shape) == 1:
            weight = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        else:  # keeps the variance of what runs through it
            weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        tensors[name] = weight.to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    return folder


def _tokenizer_size(folder: Path) -> int:
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    return max(ids.values()) + 1
