"""transformers' generate on the same shapes: eager, and with a static cache and torch.compile.

It keeps keys and values of 40B and 11B copied to all query heads, 16 and 4 times the traffic: a win
over that has to be quoted as such.
"""

import time
from itertools import pairwise
from typing import Any

import torch

from tiercel.bench.gpu.models import config_of
from tiercel.worker.worker import DTYPES
from tiercel_kernels.benchmark.bounds import FalconShape
from tiercel_kernels.benchmark.timing import Timing

PROMPT_TOKENS = 1024
NEW_TOKENS = 64
_SETTLING_TOKENS = 8


def make_model(shape: FalconShape, device: torch.device, dtype: str = "bfloat16") -> Any:
    """transformers' model with random weights, made on the device in its dtype."""
    from transformers import FalconConfig, FalconForCausalLM

    fields = config_of(shape, dtype)
    for name in ("model_type", "architectures", "torch_dtype"):
        del fields[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with torch.device(device):
            model = FalconForCausalLM(FalconConfig(**fields))
    finally:
        torch.set_default_dtype(before)
    model.train(False)
    model.generation_config.eos_token_id = None  # all rows go on until the length limit
    model.generation_config.pad_token_id = 0
    return model


class Stamps:
    """A stopping criterion that never stops: the time of every token."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # generate waits here itself, to see who is done
        self.seconds.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate(
    model: Any,
    batch: int,
    *,
    static: bool = False,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
) -> Timing:
    """The time of one step of `batch` rows. static: a static cache, which makes it compile.

    Everything runs once before, so that what compiling takes is not part of it.
    """
    from transformers import StoppingCriteriaList

    device = next(model.parameters()).device
    tokens = torch.randint(12, model.config.vocab_size, (batch, prompt_tokens), device=device)
    options: dict[str, Any] = {"cache_implementation": "static"} if static else {}
    stamps = Stamps(device)
    for _ in range(2):
        stamps = Stamps(device)
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new_tokens,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([stamps]),
            **options,
        )
    steady = stamps.seconds[min(_SETTLING_TOKENS, new_tokens // 2) :]
    samples = [(end - begin) * 1e6 for begin, end in pairwise(steady)]
    # generate compiles by itself where cache and device allow it, on no CPU for one.
    compiled = "compiled" if hasattr(model, "_compiled_call") else "not compiled"
    return Timing.of(samples, f"static, {compiled}" if static else "eager")
