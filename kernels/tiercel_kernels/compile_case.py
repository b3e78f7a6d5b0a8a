"""What `make kernels-compile` needs to know to build one variant of a kernel without a GPU.

Every module in `fused` lists its own in `COMPILE_CASES`; the arguments are those of a real launch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARCHITECTURES = (80, 86, 90)


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
