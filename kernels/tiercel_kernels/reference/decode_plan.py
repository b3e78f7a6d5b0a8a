"""How decoding rows are cut into units of work, made once per step and shared by its layers."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Row r owns units [first_units[r], first_units[r + 1]); each has `unit_tokens` keys, the last
    fewer. An empty row has one unit without keys, so that somebody writes its output.
    """

    first_units: torch.Tensor  # int32 [rows + 1]
    unit_rows: torch.Tensor  # int32 [rows * max_units], the row of each unit; behind the last: any
    unit_tokens: int
    max_units: int  # the most units that one row can have


def decode_plan(contexts: torch.Tensor, unit_tokens: int, max_units: int) -> DecodePlan:
    """Cut rows of `contexts` keys into units.

    contexts: int32 [rows], 0 for an empty row, at most max_units * unit_tokens. How a row is cut
    depends on its own length only, so that its neighbours never change its bits.
    """
    units = ((contexts + unit_tokens - 1) // unit_tokens).clamp(min=1)
    rows = torch.arange(contexts.shape[0], dtype=torch.int32, device=contexts.device)
    first_units = torch.zeros(contexts.shape[0] + 1, dtype=torch.int32, device=contexts.device)
    first_units[1:] = units.cumsum(0)
    unit_rows = torch.zeros(rows.shape[0] * max_units, dtype=torch.int32, device=contexts.device)
    listed = rows.repeat_interleave(units)
    unit_rows[: listed.shape[0]] = listed
    return DecodePlan(first_units, unit_rows, unit_tokens, max_units)
