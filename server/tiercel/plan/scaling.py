"""What more cards should bring, by arithmetic: the bound of a step, and the ranks' exchange on top.

`python -m tiercel.plan.scaling` prints the table of docs/parallel.md. Nothing in it is measured.
"""

from dataclasses import dataclass

from tiercel.model.spec import Block, FalconSpec
from tiercel.plan.cards import CARDS, Card
from tiercel.plan.models import PUBLISHED
from tiercel.plan.sizes import ITEM_BYTES, Storage, weight_bytes
from tiercel.plan.speed import decode_ms

RANKS = (1, 2, 4, 8)
ROWS = (1, 64)
CONTEXT = 1024
MODELS = ("falcon-7b", "falcon-40b", "falcon-180b")
WEIGHTS_SHARE = 0.9  # of a card's memory, so that some cache fits


@dataclass(frozen=True)
class Link:
    """Between two cards of one machine."""

    name: str
    latency_s: float  # of one small all-reduce
    bandwidth: float  # bytes/s in each direction


# NCCL takes 15 to 20 us for a small all-reduce over NVLink (one-shot kernels, 4 us, are
# behind --one-shot-all-reduce); A10G instances have no peer access, so that it goes through the
# host's memory.
LINKS = {
    "a10g": Link("PCIe 4 through the host", 30e-6, 12e9),
    "a100-80": Link("NVLink 3", 18e-6, 250e9),
    "h100": Link("NVLink 4", 18e-6, 400e9),
}


def exchange_ms(spec: FalconSpec, link: Link, rows: int, ranks: int) -> float:
    """Of one step: an all-reduce per parallel layer (two in RW) and for the embedding, the logits
    to the first rank, and its tokens back. In 16 bits.
    """
    if ranks == 1:
        return 0.0
    item = ITEM_BYTES["bfloat16"]
    sums = spec.num_layers * (2 if spec.block is Block.SEQUENTIAL else 1) + 1
    share = (ranks - 1) / ranks
    hidden = 2 * share * rows * spec.hidden_size * item / link.bandwidth
    logits = share * rows * spec.vocab_size * item / link.bandwidth
    return (sums * (link.latency_s + hidden) + 2 * link.latency_s + logits) * 1e3


def step_ms(spec: FalconSpec, storage: Storage, card: Card, rows: int, ranks: int) -> float | None:
    """Of a decoding step, None where the weights do not fit."""
    if weight_bytes(spec, storage, ranks) > WEIGHTS_SHARE * card.memory_bytes:
        return None
    bound = decode_ms(spec, storage, card, rows, CONTEXT, ranks)
    if bound is None:
        return None
    return bound + exchange_ms(spec, LINKS[card.name], rows, ranks)


def table() -> str:
    """Milliseconds of a step, and how much faster than on the fewest cards that hold the model."""
    header = ["model", "card, link", "sequences", *(f"{ranks}" for ranks in RANKS)]
    lines = [header, ["---"] * len(header)]
    storage = Storage(None, False, "bfloat16")
    for name in MODELS:
        for card, link in LINKS.items():
            for rows in ROWS:
                steps = [
                    step_ms(PUBLISHED[name], storage, CARDS[card], rows, ranks) for ranks in RANKS
                ]
                first = next((step for step in steps if step is not None), None)
                if first is None:
                    continue
                cells = [
                    "-" if step is None else f"{step:.1f} ({first / step:.1f}x)" for step in steps
                ]
                lines.append([name, f"{card}, {link.name}", str(rows), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())  # noqa: T201 (the answer of the command)
