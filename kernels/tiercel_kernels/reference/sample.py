"""sample: temperature, top-k, top-p, typical, and the draw, each row with its own parameters."""

from dataclasses import dataclass, fields

import torch

from tiercel_kernels.reference.philox import noise

GROUPS = 256


@dataclass(frozen=True)
class SampleParams:
    """One value per row, [rows] each."""

    temperature: torch.Tensor  # float32, positive; 1 does nothing
    top_k: torch.Tensor  # int32; 0 does nothing
    top_p: torch.Tensor  # float64; 1 does nothing
    typical_p: torch.Tensor  # float64; 1 does nothing
    draws: torch.Tensor  # int32; 0: the likeliest token of what is left, the first of equals
    seed: torch.Tensor  # int64, the bits of an unsigned seed
    position: torch.Tensor  # int64: the absolute index of the token that is drawn


def sample(logits: torch.Tensor, params: SampleParams) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row and its log-probability: int64 [rows], float32 [rows].

    logits: [rows, vocab], any float type, not changed; -inf marks ids that must not be drawn. In
    this order: (l - largest) / T; top-k keeps ties with the k-th; top-p keeps the smallest set of
    the likeliest tokens whose mass reaches p, of equals at its edge the higher ids; typical keeps
    those whose surprise is closest to the entropy until their mass reaches m, and ties. The draw is
    Gumbel-max in two stages, see `_draw`, with noise that depends on seed and position only. A row
    with NaN or +inf, or with nothing but -inf, has token 0 and NaN.
    """
    check(logits, params)
    ids = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    logprobs = torch.full([len(logits)], torch.nan, device=logits.device)
    for row, line in enumerate(logits.float()):
        largest = line.max()
        if not largest.isfinite():  # max of a row with NaN is NaN
            continue
        kept = (line - largest) / params.temperature[row]
        kept = _top_k(kept, int(params.top_k[row]))
        kept = _top_p(kept, float(params.top_p[row]))
        kept = _typical(kept, float(params.typical_p[row]))
        logprob = kept.double().log_softmax(-1)
        chosen = kept.argmax()
        if params.draws[row]:
            chosen = _draw(logprob, int(params.seed[row]), int(params.position[row]))
        ids[row], logprobs[row] = chosen, logprob[chosen].float()
    return ids, logprobs


def _draw(logprob: torch.Tensor, seed: int, position: int) -> torch.Tensor:
    """A group of ids by the largest log mass + noise, then an id of it by log p + noise.

    Ids [g * width, (g + 1) * width) are group g; the members' noise follows the groups'.
    """
    groups, width = group_shape(len(logprob))
    gumbel = noise(seed, position, groups + width).to(logprob.device)
    padded = torch.nn.functional.pad(logprob, (0, groups * width - len(logprob)), value=-torch.inf)
    by_group = padded.view(groups, width)
    group = (by_group.exp().sum(-1).log() + gumbel[:groups]).argmax()
    return group * width + (by_group[group] + gumbel[groups:]).argmax()


def group_shape(vocab: int) -> tuple[int, int]:
    """(groups, ids in each) of the draw; the last ones may be short or empty."""
    groups = min(GROUPS, vocab)
    return groups, -(-vocab // groups)


def _top_k(line: torch.Tensor, k: int) -> torch.Tensor:
    if not 0 < k < len(line):
        return line
    return line.masked_fill(line < line.topk(k).values[-1], -torch.inf)


def _top_p(line: torch.Tensor, p: float) -> torch.Tensor:
    if p >= 1:
        return line
    # Ascending and stable: of equals the lower ids are dropped first.
    ordered, ids = line.double().sort(stable=True)
    dropped = ordered.softmax(-1).cumsum(-1) <= 1 - p
    dropped[-1] = False
    return line.masked_fill(torch.zeros_like(dropped).scatter(0, ids, dropped), -torch.inf)


def _typical(line: torch.Tensor, m: float) -> torch.Tensor:
    if m >= 1:
        return line
    logp = line.double().log_softmax(-1)
    mass = logp.exp()
    entropy = -torch.where(mass > 0, mass * logp, 0.0).sum()
    distance = (logp + entropy).abs()
    ordered, ids = distance.sort(stable=True)
    last = int((mass[ids].cumsum(-1) < m).sum().clamp(max=len(line) - 1))
    return line.masked_fill(distance > ordered[last], -torch.inf)


def check(logits: torch.Tensor, params: SampleParams) -> None:
    """Raises ValueError for what does not fit."""
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError("logits must be [rows, vocab] with the vocabulary contiguous")
    types = [torch.float32, torch.int32, torch.float64, torch.float64, torch.int32]
    for field, dtype in zip(fields(params), [*types, torch.int64, torch.int64], strict=True):
        value = getattr(params, field.name)
        if value.shape != (len(logits),) or value.dtype != dtype or not value.is_contiguous():
            raise ValueError(f"{field.name} must be {dtype} [{len(logits)}] and contiguous")
