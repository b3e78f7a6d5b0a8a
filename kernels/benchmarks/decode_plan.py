"""The work list of decode attention, once per step: a latency, there is next to nothing to move."""

import sys

import torch

from tiercel_kernels.benchmark.case import Case, Inputs
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.fused.decode_plan import decode_plan
from tiercel_kernels.reference import decode_plan as reference

OP = "decode_plan"
UNIT_TOKENS = 512
TABLE_TOKENS = 4096


def case(rows: int) -> Case:
    """Rows of all lengths that a table of 4096 tokens holds."""
    units = TABLE_TOKENS // UNIT_TOKENS

    def prepare(device: torch.device, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(0, TABLE_TOKENS + 1, (rows,), generator=generator)
        contexts = lengths.int().to(device)

        def check() -> str:
            plan = decode_plan(contexts, UNIT_TOKENS, units)
            wanted = reference.decode_plan(contexts, UNIT_TOKENS, units)
            count = int(wanted.first_units[-1])
            same = torch.equal(plan.first_units, wanted.first_units)
            same = same and torch.equal(plan.unit_rows[:count], wanted.unit_rows[:count])
            return "" if same else "another plan than the reference's"

        return Inputs(lambda: decode_plan(contexts, UNIT_TOKENS, units), check)

    return Case(
        f"{rows} rows", 4 * (2 * rows + 1 + rows * units / 2), prepare, note="latency, warm"
    )


def cases() -> list[Case]:
    return [case(rows) for rows in (1, 64, 256)]


if __name__ == "__main__":
    sys.exit(main(OP, cases()))
