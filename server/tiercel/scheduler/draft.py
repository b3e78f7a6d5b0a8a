"""A plan while it is made."""

from dataclasses import dataclass, field

from tiercel.scheduler.budget import Allowance
from tiercel.scheduler.sequence import Sequence
from tiercel.wire.step import RowSlice, RowStart


@dataclass
class Draft:
    """Slices of one token and longer ones, with their sequences; the former come first."""

    allowance: Allowance
    starts: list[RowStart] = field(default_factory=list)
    decodes: list[RowSlice] = field(default_factory=list)
    decoding: list[Sequence] = field(default_factory=list)
    prefills: list[RowSlice] = field(default_factory=list)
    prefilling: list[Sequence] = field(default_factory=list)
    blocked: bool = False  # one waits for blocks of a younger one in a step that is out

    @property
    def empty(self) -> bool:
        """Nothing would run."""
        return not self.decodes and not self.prefills

    def add(self, sequence: Sequence, piece: RowSlice) -> None:
        """The piece is in the step; what is longer than one token is paid for."""
        if piece.count == 1:
            self.decodes.append(piece)
            self.decoding.append(sequence)
        else:
            self.prefills.append(piece)
            self.prefilling.append(sequence)
            self.allowance.spend(piece.count, piece.start)
