"""Faults inside of real processes: what a `sitecustomize` on their PYTHONPATH does to them."""

from pathlib import Path

from support.server import SOURCE_FOLDER

_CODE = """
import sys

if {module!r} in sys.orig_argv:
    import os, time
    from tiercel.worker.worker import Worker

    submit, steps = Worker.submit, 0

    def submit_or_fail(self, plan):
        global steps
        steps += len(plan.slices) >= {rows}
        if steps == {step}:
            {fault}
        submit(self, plan)

    Worker.submit = submit_or_fail
"""


def at_step(folder: Path, module: str, step: int, rows: int, fault: str) -> dict[str, str]:
    """Variables for a server whose process `module` executes `fault` before that step's work.

    Steps with fewer rows do not count; those of its warm-up do.
    """
    code = _CODE.format(module=module, step=step, rows=rows, fault=fault)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{folder}:{SOURCE_FOLDER}"}
