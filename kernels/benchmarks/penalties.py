"""Repetition, frequency, presence and count penalties over the known tokens of every row."""

import sys

import torch

from benchmarks.inputs import sample_rows
from benchmarks.sampling_inputs import ROWS, VOCAB, logits_of
from tiercel_kernels.benchmark.case import Case, Inputs, difference
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.fused.penalties import penalties
from tiercel_kernels.reference import penalties as reference
from tiercel_kernels.reference.penalties import Penalties

OP = "penalties"
KNOWN_TOKENS = 1024
VALUES = (1.2, 0.3, 0.5, 0.1)


def _in_torch(
    logits: torch.Tensor, tokens: torch.Tensor, prompt: int, values: Penalties
) -> torch.Tensor:
    """By counting with scatter_add and passing over all logits."""
    ids = tokens.long()
    every, generated = torch.zeros_like(logits), torch.zeros_like(logits)
    every.scatter_add_(1, ids, torch.ones_like(ids, dtype=logits.dtype))
    later = ids[:, prompt:]
    generated.scatter_add_(1, later, torch.ones_like(later, dtype=logits.dtype))
    repetition, frequency, presence, count = (
        each.unsqueeze(1)
        for each in (values.repetition, values.frequency, values.presence, values.count)
    )
    repeated = torch.where(logits < 0, logits * repetition, logits / repetition)
    changed = torch.where(every > 0, repeated, logits) - every * (frequency / ids.shape[1])
    return torch.where(generated > 0, changed - presence - count * generated, changed)


def case(rows: int, vocab: int = VOCAB, known: int = KNOWN_TOKENS) -> Case:
    """Rows with `known` tokens, half of them the prompt, all four penalties set."""
    prompt = known // 2

    def prepare(device: torch.device, seed: int) -> Inputs:
        logits = logits_of(rows, vocab, device, seed)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, vocab, (rows, known), generator=generator).int().to(device)
        lengths, prompts = (
            torch.full((rows,), number, dtype=torch.int32, device=device)
            for number in (known, prompt)
        )
        values = Penalties(*(torch.full((rows,), each, device=device) for each in VALUES))

        def check() -> str:
            some = sample_rows(rows)
            expected, made = logits[some], logits.clone()
            few = Penalties(*(torch.full((len(some),), each, device=device) for each in VALUES))
            reference.penalties(expected, tokens[some], lengths[some], prompts[some], few)
            penalties(made, tokens, lengths, prompts, values)
            return difference(made[some], expected)

        return Inputs(
            lambda: penalties(logits, tokens, lengths, prompts, values),
            check,
            {"torch": lambda: _in_torch(logits, tokens, prompt, values)},
        )

    # Ids are read, and the logits of distinct ones changed; the count in between is our own matter.
    moved = rows * known * (4 + 8)
    return Case(
        f"{rows} rows of {known} tokens", moved, prepare, resident_bytes=4 * rows * vocab * 8
    )


def cases() -> list[Case]:
    return [case(rows) for rows in reversed(ROWS)]


if __name__ == "__main__":
    sys.exit(main(OP, cases()))
