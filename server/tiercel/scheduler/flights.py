"""The plans that are out: submitted, and their results not yet applied.

Plans run in the order in which they were made. That is what lets a later one build upon an earlier
one that is still out: it reads what that one writes, and the token that it draws.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tiercel.cache.pool import InvariantError
from tiercel.scheduler.sequence import Sequence
from tiercel.wire.step import RowSlice, StepPlan


@dataclass(frozen=True)
class Flight:
    """A plan that is out: its sequences, in the order of its slices."""

    plan: StepPlan
    sequences: list[Sequence]


class Flights:
    """All flights, oldest first."""

    def __init__(self, *, in_order: bool) -> None:
        """`in_order`: sequences may be in several at once, so only the oldest may land."""
        self._in_order = in_order
        self._out: dict[int, Flight] = {}

    def __len__(self) -> int:
        return len(self._out)

    def start(self, plan: StepPlan, sequences: list[Sequence]) -> None:
        """The plan goes out."""
        self._out[plan.step] = Flight(plan, sequences)

    def land(self, plan: StepPlan) -> Flight:
        """The plan is back. Raises ValueError if it is not out, or not the one whose turn it is."""
        flight = self._out.get(plan.step)
        if flight is None or flight.plan is not plan:
            raise ValueError(f"step {plan.step} is not out")
        oldest = next(iter(self._out))
        if self._in_order and oldest != plan.step:
            raise ValueError(f"step {plan.step} cannot land before step {oldest}")
        del self._out[plan.step]
        return flight

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raises InvariantError that names the sequence whose books and flights disagree."""
        pieces: dict[int, list[RowSlice]] = {}
        for flight in self._out.values():
            for sequence, piece in zip(flight.sequences, flight.plan.slices, strict=True):
                if sequence.row != piece.row:
                    raise InvariantError(
                        f"sequence {sequence.id} has row {sequence.row} while step "
                        f"{flight.plan.step} is out with it in row {piece.row}"
                    )
                pieces.setdefault(sequence.id, []).append(piece)
        for sequence in running:
            _check(sequence, pieces.pop(sequence.id, []))
        if pieces:
            raise InvariantError(f"sequences {sorted(pieces)} are in a step and do not run")


def _check(sequence: Sequence, pieces: list[RowSlice]) -> None:
    name = f"sequence {sequence.id}"
    if len(pieces) > 1 and sequence.request.grammar is not None:
        raise InvariantError(f"{name} was planned ahead of the token that its grammar needs")
    if sequence.ended and not pieces:
        raise InvariantError(f"{name} has ended and still holds row {sequence.row}")
    end = sequence.computed
    for piece in pieces:
        if piece.start < end:
            raise InvariantError(f"{name} computes position {piece.start} twice")
        end = piece.start + piece.count
    if sequence.planned != end:
        raise InvariantError(f"{name} has planned {sequence.planned} tokens, its flights {end}")
    if sequence.planned > sequence.computable:
        raise InvariantError(f"{name} computes its last token, {sequence.planned - 1}")
    # Each flight draws one at most, and the last one's is not planned yet. Dropped ones count no
    # more: an ended sequence does not learn what they drew.
    unknown = sequence.planned - len(sequence.tokens)
    if not sequence.ended and unknown >= max(1, len(pieces)):
        raise InvariantError(f"{name} computes tokens that no flight draws")
