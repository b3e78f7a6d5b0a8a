"""Rotary positions (RoFormer, arXiv 2104.09864), rotating the two halves of a head, as in GPT-NeoX.

Frequencies are those of transformers' `modeling_rope_utils.py`, default, linear and dynamic.
"""

import torch

from tiercel.model.spec import RopeScaling

Rotation = tuple[torch.Tensor, torch.Tensor]


class Rotary:
    """Cosines and sines of every position, made once.

    Dynamic scaling: position p takes the frequencies of a sequence of p + 1 tokens. Up to the
    original context those are the unscaled ones, exactly as in transformers. Beyond it, this is
    what transformers computes for a token that is decoded at p; in transformers a prompt that is
    longer than the original context turns all its tokens by its own length instead. A table that
    depends on nothing but the position keeps cached prefixes and chunked prefill exact.
    """

    def __init__(
        self,
        head_dim: int,
        positions: int,
        *,
        theta: float,
        scaling: RopeScaling | None,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        inverse = _inverse_frequencies(head_dim, positions, theta, scaling)
        angles = torch.arange(positions, dtype=torch.float32).unsqueeze(1) * inverse
        cos, sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)
        self._cos = torch.cat((cos, cos), dim=1)  # [positions, head_dim]
        # Turning (a, b) gives (a cos - b sin, b cos + a sin): the first half's sine is negative.
        self._sin = torch.cat((-sin, sin), dim=1)

    @property
    def nbytes(self) -> int:
        return self._cos.nbytes + self._sin.nbytes

    @property
    def tables(self) -> Rotation:
        """Cosines and sines of every position: [positions, head_dim / 2] each."""
        half = self._cos.shape[1] // 2
        return self._cos[:, :half], self._sin[:, half:]

    def at(self, positions: torch.Tensor) -> Rotation:
        """positions: [tokens] -> cosines and signed sines, each [tokens, 1, head_dim]."""
        return (
            self._cos.index_select(0, positions).unsqueeze(1),
            self._sin.index_select(0, positions).unsqueeze(1),
        )


def rotate_(heads: torch.Tensor, rotation: Rotation) -> None:
    """Turn queries and keys by their positions, in place. heads: [tokens, heads, head_dim].

    In place, so that the keys stay beside the values and one copy writes both to the cache.
    """
    cos, sin = rotation
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    heads.mul_(cos).addcmul_(swapped, sin)


def _inverse_frequencies(
    head_dim: int, positions: int, theta: float, scaling: RopeScaling | None
) -> torch.Tensor:
    """1 / theta^(2i / head_dim): [head_dim / 2], or [positions, head_dim / 2] where it grows."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    if scaling is None or scaling.kind == "linear":
        inverse: torch.Tensor = 1.0 / (theta**exponents)
        return inverse if scaling is None else inverse / scaling.factor
    lengths = torch.arange(1, positions + 1, dtype=torch.float64).clamp_(
        min=float(scaling.original_max_positions)
    )
    growth = scaling.factor * lengths / scaling.original_max_positions - (scaling.factor - 1)
    thetas = theta * growth ** (head_dim / (head_dim - 2))
    return 1.0 / (thetas.to(torch.float32).unsqueeze(1) ** exponents)
