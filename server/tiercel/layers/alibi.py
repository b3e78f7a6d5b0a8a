"""ALiBi (arXiv 2108.12409): a bias on attention scores that grows with the key's position."""

import math

import torch


def slopes(heads: int) -> torch.Tensor:
    """One slope per query head: float32 [heads].

    A power of two gets the geometric series from 2^(-8/heads); other counts fill up with every
    second slope of the next power of two.
    """
    power = 1 << (heads.bit_length() - 1)
    series = _series(power, power, 1)
    if power == heads:
        return series
    return torch.cat((series, _series(2 * power, heads - power, 2)))


def _series(heads: int, count: int, stride: int) -> torch.Tensor:
    base = torch.tensor(2.0 ** (-(2.0 ** -(math.log2(heads) - 3))), dtype=torch.float32)
    return torch.pow(base, torch.arange(1, 1 + stride * count, stride, dtype=torch.int32))


def bias_table(heads: int, head_dim: int, positions: int) -> torch.Tensor:
    """The bias of a key at each position, after the softmax scale: float32 [heads, positions].

    Falcon rounds slopes, and their products with the position, to bfloat16 whatever the model's
    dtype is, and adds them before the scale 1 / sqrt(head_dim): the weights were trained with it.
    """
    places = torch.arange(positions, dtype=torch.int64)
    rounded = slopes(heads).bfloat16().unsqueeze(1) * places
    return rounded.float() / math.sqrt(head_dim)
