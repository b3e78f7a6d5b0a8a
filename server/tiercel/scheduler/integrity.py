"""Whether every row is held by exactly one of those who may hold it."""

from tiercel.cache.pool import InvariantError
from tiercel.scheduler.sequence import Sequence


def check_rows(
    running: list[Sequence], free_rows: list[int], max_rows: int, block_tokens: int
) -> list[list[int]]:
    """The blocks of every sequence, for the pool to check.

    Raises InvariantError that names the row or sequence that is not accounted for.
    """
    tables = []
    rows = list(free_rows)
    for sequence in running:
        blocks = sequence.allocation.blocks
        if len(blocks) * block_tokens < sequence.planned:
            raise InvariantError(f"sequence {sequence.id} computes more than its blocks hold")
        tables.append(blocks)
        rows.append(sequence.row)
    if sorted(rows) != list(range(max_rows)):
        raise InvariantError(f"rows are lost or held twice: {sorted(rows)}")
    return tables
