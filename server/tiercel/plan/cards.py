"""The cards a plan is for: memory, and the speeds that bound a step."""

import re
from dataclasses import dataclass

from tiercel.errors import ConfigError

MIB = 1 << 20


@dataclass(frozen=True)
class Card:
    """`bandwidth`: bytes/s that weights stream at. `flops`: dense 16-bit FLOP/s. 0: not known."""

    name: str
    memory_bytes: int
    bandwidth: float = 0.0
    flops: float = 0.0


# Memory as nvidia-smi reports it. H100 and H200: copy bandwidth and GEMM speed that others
# measured; the older cards' are their data sheets', of which an A10G reaches less (ECC).
CARDS = {
    card.name: card
    for card in (
        Card("a10g", 23028 * MIB, 0.60e12, 70e12),
        Card("a100-40", 40960 * MIB, 1.555e12, 312e12),
        Card("a100-80", 81920 * MIB, 2.0e12, 312e12),
        Card("h100", 81559 * MIB, 3.0e12, 800e12),
        Card("h200", 143771 * MIB, 4.3e12, 790e12),
    )
}
_SIZE = re.compile(r"(\d{1,5}(?:\.\d{1,3})?)\s*(?:gb)?", re.IGNORECASE)


def card(text: str) -> Card:
    """The card of a name, or one of `N GB` (10^9 bytes each) of unknown speed.

    Raises ConfigError.
    """
    known = CARDS.get(text.strip().lower())
    if known is not None:
        return known
    size = _SIZE.fullmatch(text.strip())
    if size is None or not 0 < float(size[1]) <= 10_000:
        raise ConfigError(
            f"--gpu is {text!r}; it must be one of {', '.join(CARDS)}, or a number of GB such as 48"
        )
    return Card(f"{float(size[1]):g} GB", int(float(size[1]) * 1e9))
