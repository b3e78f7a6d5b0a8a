"""Which binaries a GPU would need for the launches that are made, without one.

Triton's launcher runs up to the place where it would compile, and what it would compile is written
down; nothing is computed. Only where TRITON_INTERPRET is not set: in a process of its own.
"""

from collections.abc import Mapping
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from tiercel_kernels.fused.sample import sample_kernel

Binary = str  # kernel, types with what is known of each, constants, options


class NoDevice:
    """A driver that knows a target and can launch nothing."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Launches:
    """Every binary since `clear`, and how often it was launched."""

    def __init__(self, architecture: int = 90) -> None:
        """From now on nothing runs in this process."""
        assert isinstance(sample_kernel, triton.JITFunction), "TRITON_INTERPRET is set"
        self.binaries: dict[Binary, int] = {}
        driver.set_active(NoDevice(architecture))
        knobs.runtime.jit_cache_hook = self._note
        # Memory that nobody writes may hold what is no token and no number.
        sample_kernel.add_pre_run_hook(_zero)

    def clear(self) -> dict[Binary, int]:
        """What there was, once more from the beginning."""
        before, self.binaries = self.binaries, {}
        return before

    def _note(self, *, fn: Any, compile: Mapping[str, Any], **_: Any) -> bool:
        name = binary(
            fn.name, compile["signature"], compile["configs"][0], compile["constants"], compile
        )
        self.binaries[name] = self.binaries.get(name, 0) + 1
        return True  # not to be compiled, so that the next launch comes here too


def binary(
    kernel: str,
    signature: Mapping[str, str],
    attributes: Mapping[tuple[int, ...], Any],
    constants: Mapping[Any, Any],
    options: Mapping[str, Any],
) -> Binary:
    """In words. attributes: by the place of the argument; constants: by place or by name."""
    names = list(signature)
    aligned = {names[place[0]] for place, known in attributes.items() if known}
    types = [
        f"{name}: {kind}{', 16' if name in aligned else ''}"
        for name, kind in signature.items()
        if kind != "constexpr"
    ]
    fixed = {key if isinstance(key, str) else names[key[0]]: constants[key] for key in constants}
    launch = [f"{name} = {options[name]}" for name in ("num_warps", "num_stages")]
    launch.append(f"fusion = {options['enable_fp_fusion']}")
    return "; ".join(
        (kernel, *types, *(f"{name} = {fixed[name]}" for name in sorted(fixed)), *launch)
    )


def _zero(*arguments: Any, **_: Any) -> None:
    for name in ("ids_ptr", "logprobs_ptr"):
        arguments[sample_kernel.arg_names.index(name)].zero_()
