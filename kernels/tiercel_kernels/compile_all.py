"""Builds every kernel for GPUs that are not here: `python -m tiercel_kernels.compile_all`.

Prints registers, shared memory and spills of every COMPILE_CASES entry, and exits with 1 where a
kernel spills or wants more shared memory than a block of the card can have.
"""

import argparse
import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import tiercel_kernels.fused
from tiercel_kernels.compile_case import ARCHITECTURES, CompileCase
from tiercel_kernels.tuning.cards import SHARED_KIB

# What one block may use, in bytes.
SHARED_LIMITS = {card: 1024 * SHARED_KIB[card] for card in ARCHITECTURES}


@dataclass(frozen=True)
class Built:
    """One kernel on one architecture: registers per thread, bytes of shared memory and spills."""

    module: str
    kernel: str
    case: str
    architecture: int
    warps: int
    stages: int
    registers: int
    shared: int
    spilled: int
    error: str = ""

    @property
    def problem(self) -> str:
        """Why this may not be shipped; empty if it may."""
        if self.error:
            return self.error
        if self.spilled:
            return f"{self.spilled} bytes of registers spilled"
        limit = SHARED_LIMITS[self.architecture]
        return f"{self.shared} bytes of shared memory of {limit}" if self.shared > limit else ""


def modules() -> list[str]:
    """The names of the modules of `fused`."""
    return sorted(each.name for each in pkgutil.iter_modules(tiercel_kernels.fused.__path__))


def cases(module: str) -> list[CompileCase]:
    """What the module wants built. Raises AttributeError where it says nothing."""
    found = importlib.import_module(f"tiercel_kernels.fused.{module}").COMPILE_CASES
    return list(found)


def build(module: str, number: int, architecture: int) -> Built:
    """Compiles one case for sm_<architecture> and reads its resources from the machine code."""
    case = cases(module)[number]
    names = case.kernel.arg_names
    types = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [i for i, each in enumerate(case.kernel.params) if is_aligned(each, types, case)]
    source = ASTSource(
        case.kernel,
        types,
        dict(case.constexprs),
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"enable_fp_fusion": True, **case.options}
    options |= {"num_warps": case.num_warps, "num_stages": case.num_stages}
    registers = shared = spilled = 0
    error = ""
    try:
        binary = triton.compile(source, GPUTarget("cuda", architecture, 32), options)
        registers, spilled = resources(binary.asm["cubin"])
        shared = int(binary.metadata.shared)
    except Exception as failure:  # noqa: BLE001 - a row of the report, whatever it was
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
    return Built(
        module,
        case.kernel.__name__,
        case.name,
        architecture,
        case.num_warps,
        case.num_stages,
        registers,
        shared,
        spilled,
        error,
    )


def is_aligned(parameter: Any, types: Mapping[str, str], case: CompileCase) -> bool:
    """Whether a launch tells the compiler that the argument is a multiple of 16."""
    if parameter.do_not_specialize or parameter.do_not_specialize_on_alignment:
        return False
    return types[parameter.name].startswith("*") or parameter.name in case.aligned


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of stack and local memory per thread: what was spilled."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"]


def build_all(only: list[str], workers: int) -> list[Built]:
    """Every case of every module (of `only`, if it names any), on every architecture it is for."""
    jobs = [
        (module, number, architecture)
        for module in modules()
        if module in only or not only
        for number, case in enumerate(cases(module))
        for architecture in case.targets
    ]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(build, *zip(*jobs, strict=True)))


def table(built: list[Built]) -> str:
    """The report as Markdown."""
    lines = [
        "# Cross-compilation",
        "",
        f"`make kernels-compile`, Triton {triton.__version__}. One row per kernel, variant and",
        "architecture: registers per thread, shared memory per block, bytes spilled per thread.",
        "",
        "| op | kernel | variant | sm | warps | stages "
        "| registers | shared KiB | spills | problem |",
        "|" + "---|" * 10,
    ]
    lines += [
        f"| {each.module} | {each.kernel} | {each.case} | {each.architecture} | {each.warps} "
        f"| {each.stages} | {each.registers} | {each.shared / 1024:.1f} "
        f"| {each.spilled} | {each.problem} |"
        for each in built
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """0 if everything was built within the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", nargs="*", help="modules of fused; all if none is named")
    parser.add_argument("--write", type=Path, help="where the table goes too")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    built = build_all(arguments.op, arguments.workers)
    text = table(built)
    print(text)
    if arguments.write is not None:
        arguments.write.write_text(text)
    problems = [each for each in built if each.problem]
    for each in problems:
        name = f"{each.module}/{each.kernel}, {each.case}"
        print(f"{name} on sm_{each.architecture}: {each.problem}", file=sys.stderr)
    print(f"{len(built)} built, {len(problems)} with problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
