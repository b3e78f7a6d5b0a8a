"""The GPUs that torch sees: `python -P -m tiercel.parallel.cards`, a JSON list.

In a process of its own: who asks a card for its free memory takes some of it, until he ends.
"""

import subprocess
import sys
from typing import NamedTuple

import msgspec

TIMEOUT_S = 120.0


class Card(NamedTuple):
    """A GPU."""

    name: str
    free_bytes: int


def visible_cards(environment: dict[str, str] | None = None) -> list[Card]:
    """In torch's order; none where they cannot be asked.

    `environment`: ours if it is None.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tiercel.parallel.cards"],
        env=environment, capture_output=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    return msgspec.json.decode(done.stdout, type=list[Card]) if done.returncode == 0 else []


def main() -> None:
    """Write the list."""
    import torch

    cards = [
        Card(torch.cuda.get_device_name(number), torch.cuda.mem_get_info(number)[0])
        for number in range(torch.cuda.device_count())
    ]
    sys.stdout.buffer.write(msgspec.json.encode(cards))


if __name__ == "__main__":
    main()
