"""What `make kernels-compile` needs to know to build one variant of a kernel without a GPU.

Every module in `fused` lists its own in `COMPILE_CASES`; the arguments are those of a real launch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tiercel_kernels.tuning.cards import nearest

# Turing, A100, A10G and its like, Hopper, and the Blackwell of workstations, whose blocks have less
# shared memory than Hopper's.
ARCHITECTURES = (75, 80, 86, 90, 120)
FIRST_BFLOAT16 = 80


def in_use(listed: Iterable[int], card: int) -> tuple[int, ...]:
    """The architectures that get this card's launch parameters, of the cards that a table lists."""
    listed = list(listed)
    return tuple(each for each in ARCHITECTURES if nearest(listed, each) == card)


@dataclass(frozen=True)
class CompileCase:
    """One kernel with one set of types and constants."""

    kernel: Any  # a triton JITFunction
    name: str
    signature: Mapping[str, str]  # run-time argument -> Triton type: "*bf16", "*i32", "i32", "fp32"
    constexprs: Mapping[str, Any] = field(default_factory=dict)  # every tl.constexpr argument
    num_warps: int = 4
    num_stages: int = 3
    # Launch options besides these two, such as enable_fp_fusion.
    options: Mapping[str, Any] = field(default_factory=dict)
    # Integers that are multiples of 16 in real launches. Pointers are too, unless the kernel is not
    # specialized for that.
    aligned: tuple[str, ...] = ()
    architectures: tuple[int, ...] = ARCHITECTURES  # fewer where a table names this card only

    @property
    def targets(self) -> tuple[int, ...]:
        """`architectures` that have the types."""
        lacking = FIRST_BFLOAT16 if "*bf16" in self.signature.values() else 0
        return tuple(each for each in self.architectures if each >= lacking)


def buildable(cases: Iterable[CompileCase]) -> list[CompileCase]:
    """Those that some architecture has the types for: Turing's table is not for bfloat16."""
    return [case for case in cases if case.targets]
