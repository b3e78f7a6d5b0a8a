"""Logits processors: what changes a row's logits before a token is chosen, in the contract's order.

A processor holds one parameter per row and sees only the rows that want it. The watermark has its
own module. Formulas: TGI's, with the true length of each row instead of its batch's widest.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tiercel.sampling.mass import cut_by_mass
from tiercel.wire.request import SamplingParams

IntArray = npt.NDArray[np.integer]


class Processor(Protocol):
    """One change to logits, with parameters per row."""

    def wanted(self, params: SamplingParams) -> bool:
        """Whether these parameters change anything."""
        ...

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        """Remember the row's parameters. Only called where `wanted`.

        `prompt_tokens`: how many of the row's tokens are its prompt. Raises ValueError for
        parameters that cannot be applied.
        """
        ...

    def apply(self, logits: torch.Tensor, rows: list[int], tokens: list[IntArray]) -> None:
        """Change `logits`, float32 [n, vocab], in place; -inf is a token that cannot be drawn."""
        ...


class _Column:
    """One float per row, gathered as a column for broadcasting over the vocabulary."""

    def __init__(self, max_rows: int) -> None:
        self._values = torch.zeros(max_rows, dtype=torch.float64)

    def set(self, row: int, value: float) -> None:
        self._values[row] = value

    def column(self, rows: list[int], device: torch.device) -> torch.Tensor:
        return self._values[rows].unsqueeze(1).to(device)  # float64 [n, 1]


class LogitBias:
    """l + b for the ids of the row's list. First of all: the bias is one to the model's logits."""

    def __init__(self, vocab_size: int, max_rows: int) -> None:
        self._vocab_size = vocab_size
        self._biases = [(torch.empty(0, dtype=torch.int64), torch.empty(0))] * max_rows

    def wanted(self, params: SamplingParams) -> bool:
        return bool(params.logit_bias)

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        ids, values = zip(*params.logit_bias, strict=True)
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            raise ValueError(f"`logit_bias` ids must be from 0 to {self._vocab_size - 1}")
        self._biases[row] = (torch.tensor(ids), torch.tensor(values, dtype=torch.float32))

    def apply(self, logits: torch.Tensor, rows: list[int], tokens: list[IntArray]) -> None:
        for line, row in zip(logits, rows, strict=True):
            ids, values = (each.to(logits.device) for each in self._biases[row])
            line.index_add_(0, ids, values)


class RepetitionPenalty:
    """Ids that occurred, prompt included: l * r where l < 0, else l / r. Once per id."""

    def __init__(self, max_rows: int) -> None:
        self._penalties = [1.0] * max_rows

    def wanted(self, params: SamplingParams) -> bool:
        return params.repetition_penalty != 1.0

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        self._penalties[row] = params.repetition_penalty

    def apply(self, logits: torch.Tensor, rows: list[int], tokens: list[IntArray]) -> None:
        for line, row, known in zip(logits, rows, tokens, strict=True):
            ids = torch.from_numpy(known.astype(np.int64)).to(logits.device)
            old, penalty = line[ids], self._penalties[row]
            # An id that occurs often writes the same value often, so no duplicates are sought.
            line[ids] = torch.where(old < 0, old * penalty, old / penalty)


class FrequencyPenalty:
    """l - f * count / length, both with the prompt."""

    def __init__(self, max_rows: int) -> None:
        self._penalties = [0.0] * max_rows

    def wanted(self, params: SamplingParams) -> bool:
        return params.frequency_penalty != 0.0

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        self._penalties[row] = params.frequency_penalty

    def apply(self, logits: torch.Tensor, rows: list[int], tokens: list[IntArray]) -> None:
        for line, row, known in zip(logits, rows, tokens, strict=True):
            unique, counts = np.unique(known.astype(np.int64), return_counts=True)
            change = counts * (self._penalties[row] / len(known))
            ids = torch.from_numpy(unique).to(logits.device)
            line[ids] -= torch.from_numpy(change).to(logits.device, logits.dtype)


class GeneratedPenalty:
    """OpenAI's penalties: l - presence - f * count for ids in the generated text, prompt left out.

    Presence counts once per id; f is the count penalty, which OpenAI calls the frequency penalty.
    """

    def __init__(self, max_rows: int) -> None:
        self._presence = [0.0] * max_rows
        self._count = [0.0] * max_rows
        self._prompt_tokens = [0] * max_rows

    def wanted(self, params: SamplingParams) -> bool:
        return params.presence_penalty != 0.0 or params.count_penalty != 0.0

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        self._presence[row] = params.presence_penalty
        self._count[row] = params.count_penalty
        self._prompt_tokens[row] = prompt_tokens

    def apply(self, logits: torch.Tensor, rows: list[int], tokens: list[IntArray]) -> None:
        for line, row, known in zip(logits, rows, tokens, strict=True):
            generated = known[self._prompt_tokens[row] :].astype(np.int64)
            unique, counts = np.unique(generated, return_counts=True)
            change = self._presence[row] + self._count[row] * counts
            ids = torch.from_numpy(unique).to(logits.device)
            line[ids] -= torch.from_numpy(change).to(logits.device, logits.dtype)


class Temperature(_Column):
    """l / T, after moving the largest logit to 0 so that a tiny T cannot overflow."""

    def wanted(self, params: SamplingParams) -> bool:
        return params.temperature != 1.0

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        self.set(row, max(params.temperature, torch.finfo(torch.float32).tiny))

    def apply(self, logits: torch.Tensor, rows: list[int], tokens: list[IntArray]) -> None:
        temperature = self.column(rows, logits.device).to(logits.dtype)
        logits.sub_(logits.amax(-1, keepdim=True)).div_(temperature)


class TopK:
    """Drops what is below the k-th largest; ties with it stay."""

    def __init__(self, max_rows: int) -> None:
        self._k = [0] * max_rows

    def wanted(self, params: SamplingParams) -> bool:
        return params.top_k > 0

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        self._k[row] = params.top_k

    def apply(self, logits: torch.Tensor, rows: list[int], tokens: list[IntArray]) -> None:
        k = [min(self._k[row], logits.shape[1]) for row in rows]
        best = logits.topk(max(k), -1).values
        last = torch.tensor(k, device=logits.device).sub_(1).unsqueeze(1)
        logits.masked_fill_(logits < best.gather(1, last), -torch.inf)


class TopP(_Column):
    """Keeps the smallest set of the likeliest tokens whose mass reaches p, at least one.

    Equal logits at the cut: an ascending stable sort drops the lower ids first, and so does this.
    """

    def wanted(self, params: SamplingParams) -> bool:
        return params.top_p < 1.0

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        self.set(row, params.top_p)

    def apply(self, logits: torch.Tensor, rows: list[int], tokens: list[IntArray]) -> None:
        target = self.column(rows, logits.device)
        cut, kept = cut_by_mass(logits, logits.softmax(-1), target)
        above = (logits >= cut).sum(-1, keepdim=True)
        logits.masked_fill_(logits < cut, -torch.inf)
        for i in (above > kept).squeeze(1).nonzero().squeeze(1).tolist():
            ties = (logits[i] == cut[i]).nonzero().squeeze(1)
            logits[i, ties[: int(above[i] - kept[i])]] = -torch.inf


class TypicalP(_Column):
    """Keeps the tokens whose surprise is closest to the entropy, until their mass reaches m.

    C. Meister, T. Pimentel, G. Wiher, R. Cotterell, "Locally typical sampling", TACL 2023.
    """

    def wanted(self, params: SamplingParams) -> bool:
        return params.typical_p < 1.0

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        self.set(row, params.typical_p)

    def apply(self, logits: torch.Tensor, rows: list[int], tokens: list[IntArray]) -> None:
        logp = logits.log_softmax(-1)
        mass = logp.exp()
        # A token filtered before has mass 0 and logp -inf: it adds nothing to the entropy.
        # A running sum, because `sum` groups one row's terms otherwise than several rows'.
        terms = (mass * logp).masked_fill_(mass == 0, 0.0).cumsum(-1, dtype=torch.float64)
        entropy = -terms[:, -1:].to(logits.dtype)
        closeness = logp.add_(entropy).abs_().neg_()  # 0 is typical, -inf was filtered before
        target = self.column(rows, logits.device)
        cut, _ = cut_by_mass(closeness, mass, target)
        logits.masked_fill_(closeness < cut, -torch.inf)
