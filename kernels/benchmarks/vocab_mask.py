"""The mask of a grammar over the vocabulary, for grammars that allow few tokens or most of them."""

import sys

import torch

from benchmarks.sampling_inputs import ROWS, VOCAB, logits_of
from tiercel_kernels.benchmark.case import Case, Inputs
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.fused.vocab_mask import vocab_mask
from tiercel_kernels.reference import vocab_mask as reference

OP = "vocab_mask"


def case(rows: int, allowed_eighths: int, vocab: int = VOCAB) -> Case:
    """Of every byte of the mask, so many bits are set."""
    words = -(-vocab // 32)

    def prepare(device: torch.device, seed: int) -> Inputs:
        logits = logits_of(rows, vocab, device, seed)
        bits = int.from_bytes(bytes([(1 << allowed_eighths) - 1]) * 4, "little", signed=True)
        mask = torch.full((rows, words), bits, dtype=torch.int32, device=device)

        def check() -> str:
            ours, theirs = logits.clone(), logits.clone()
            vocab_mask(ours, mask)
            reference.vocab_mask(theirs, mask)
            return "" if torch.equal(ours, theirs) else "other tokens than the reference's"

        return Inputs(
            lambda: vocab_mask(logits, mask),
            check,
            {"torch": lambda: reference.vocab_mask(logits, mask)},
        )

    forbidden = vocab * (8 - allowed_eighths) // 8
    moved = rows * (4 * words + 4 * forbidden)
    return Case(
        f"{rows} rows, {allowed_eighths} of 8 tokens allowed",
        moved,
        prepare,
        resident_bytes=4 * rows * vocab * 2,
    )


def cases() -> list[Case]:
    return [case(rows, allowed) for rows in reversed(ROWS) for allowed in (0, 4, 7)]


if __name__ == "__main__":
    sys.exit(main(OP, cases()))
