"""Choosing a token per row, greedy and drawn, with each filter, beside a sort in torch."""

import sys
from dataclasses import fields

import torch

from benchmarks.inputs import sample_rows
from benchmarks.sampling_inputs import ROWS, VOCAB, logits_of
from tiercel_kernels.benchmark.case import Case, Inputs
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.fused.sample import sample
from tiercel_kernels.reference import sample as reference
from tiercel_kernels.reference.sample import SampleParams

OP = "sample"
# temperature, top_k, top_p, typical_p, draws
KINDS: dict[str, tuple[float, int, float, float, int]] = {
    "greedy": (1.0, 0, 1.0, 1.0, 0),
    "drawn": (0.8, 0, 1.0, 1.0, 1),
    "top-p 0.9": (0.8, 0, 0.9, 1.0, 1),
    "top-k 50 and top-p 0.9": (0.8, 50, 0.9, 1.0, 1),
    "typical 0.8": (0.8, 0, 1.0, 0.8, 1),
}


def parameters(
    kind: tuple[float, int, float, float, int], rows: int, device: torch.device, seed: int
) -> SampleParams:
    """The same for every row, but for seed and position."""
    types = (torch.float32, torch.int32, torch.float64, torch.float64, torch.int32)
    columns = [
        torch.full((rows,), value, dtype=dtype, device=device)
        for value, dtype in zip(kind, types, strict=True)
    ]
    numbers = torch.arange(rows, device=device)
    columns += [numbers * 7919 + seed, numbers + 100]
    return SampleParams(*columns)


def _sorted(logits: torch.Tensor, params: SampleParams) -> torch.Tensor:
    """Temperature, top-k and top-p by a sort, and an exponential race for the draw."""
    ordered, ids = (logits / params.temperature.unsqueeze(1)).sort(-1, descending=True)
    places = torch.arange(logits.shape[1], device=logits.device)
    k = params.top_k.unsqueeze(1)
    ordered = ordered.masked_fill((places >= k) & (k > 0), -torch.inf)
    mass = ordered.softmax(-1)
    before = mass.cumsum(-1) - mass
    mass = mass.masked_fill(before > params.top_p.unsqueeze(1), 0.0)
    winner = (mass / torch.empty_like(mass).exponential_()).argmax(-1, keepdim=True)
    return ids.gather(1, winner)


def case(name: str, rows: int, vocab: int = VOCAB) -> Case:
    """Rows that all want the same."""
    kind = KINDS[name]

    def prepare(device: torch.device, seed: int) -> Inputs:
        logits = logits_of(rows, vocab, device, seed)
        params = parameters(kind, rows, device, seed)

        def check() -> str:
            some = sample_rows(rows)
            ids, _ = sample(logits, params)
            few = SampleParams(*(getattr(params, field.name)[some] for field in fields(params)))
            expected, _ = reference.sample(logits[some], few)
            ours, wanted = ids[some].tolist(), expected.tolist()
            return "" if ours == wanted else f"tokens {ours}, expected {wanted}"

        if kind[-1] == 0:
            rivals = {"torch argmax": lambda: logits.argmax(-1)}
        elif kind[3] == 1.0:
            rivals = {"torch sort": lambda: _sorted(logits, params)}
        else:
            rivals = {}
        return Inputs(lambda: sample(logits, params), check, rivals)

    moved = 4 * rows * vocab
    return Case(f"{name}, {rows} rows", moved, prepare, resident_bytes=moved * 4)


def cases() -> list[Case]:
    return [case(name, rows) for rows in reversed(ROWS) for name in KINDS]


if __name__ == "__main__":
    sys.exit(main(OP, cases()))
