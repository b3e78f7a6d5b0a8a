"""The contract's sampling formulas in plain numpy float64, one row at a time."""

import numpy as np
import numpy.typing as npt
import torch

from tiercel.wire.request import SamplingParams

Row = npt.NDArray[np.float64]


def log_softmax(row: Row) -> Row:
    shifted = row - row.max()
    with np.errstate(divide="ignore"):
        return shifted - np.log(np.exp(shifted).sum())


def repetition(row: Row, known: list[int], r: float) -> Row:
    out = row.copy()
    for token in set(known):
        out[token] = row[token] * r if row[token] < 0 else row[token] / r
    return out


def frequency(row: Row, known: list[int], f: float) -> Row:
    out = row.copy()
    for token in set(known):
        out[token] = row[token] - f * known.count(token) / len(known)
    return out


def top_k(row: Row, k: int) -> Row:
    kth = sorted(row.tolist(), reverse=True)[min(k, len(row)) - 1]
    return np.where(row < kth, -np.inf, row)


def top_p(row: Row, p: float) -> Row:
    order = np.argsort(row, kind="stable")
    cumulative = np.cumsum(np.exp(log_softmax(row))[order])
    dropped = cumulative <= 1 - p
    dropped[-1] = False
    out = row.copy()
    out[order[dropped]] = -np.inf
    return out


def typical_p(row: Row, m: float) -> Row:
    logp = log_softmax(row)
    p = np.exp(logp)
    entropy = -sum(a * b for a, b in zip(p, logp, strict=True) if a > 0)
    distance = np.abs(-logp - entropy)
    order = np.argsort(distance, kind="stable")
    j = min(int((np.cumsum(p[order]) < m).sum()), len(row) - 1)
    return np.where(distance > distance[order][j], -np.inf, row)


def watermark(row: Row, previous: int, gamma: float, delta: float) -> Row:
    generator = torch.Generator().manual_seed(15485863 * previous)
    green = torch.randperm(len(row), generator=generator)[: int(len(row) * gamma)].numpy()
    out = row.copy()
    out[green] += delta
    return out


def process(
    row: Row, known: list[int], params: SamplingParams, gamma: float = 0.5, delta: float = 2.0
) -> Row:
    """Steps 1 to 8 of the contract's order."""
    if params.watermark:
        row = watermark(row, known[-1], gamma, delta)
    row = repetition(row, known, params.repetition_penalty)
    row = frequency(row, known, params.frequency_penalty)
    row = row / params.temperature
    if params.top_k > 0:
        row = top_k(row, params.top_k)
    if params.top_p < 1:
        row = top_p(row, params.top_p)
    if params.typical_p < 1:
        row = typical_p(row, params.typical_p)
    return row
