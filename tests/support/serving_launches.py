"""`-m support.serving_launches FOLDER [OPTION=VALUE ...]`: a worker's binaries as JSON.

Those of its start, and those of what it serves behind it: every size of a batch and of a chunk,
every kind of draw. See support.launches.
"""

import json
import random
import sys
from pathlib import Path

import torch

from support.launches import Launches
from support.paged_workers import make_paged_worker
from support.plans import GREEDY, PlanDriver
from tiercel.wire.request import Grammar, SamplingParams
from tiercel.wire.step import RowSlice, RowStart, StepPlan
from tiercel.worker.worker import Worker
from tiercel_kernels.choose import fused_ops

DRAWN = SamplingParams(do_sample=True, seed=5, top_k=40, top_p=0.9, typical_p=0.9)
PENALIZED = SamplingParams(repetition_penalty=1.2)
SPECIAL = SamplingParams(logit_bias=((5, 4.0),))


def serve(worker: Worker) -> None:
    """Prompts of many lengths, one to three in a step, some beside a row that decodes; then all
    rows decode together, fewer and fewer of them.
    """
    driver = PlanDriver(worker)
    draw = random.Random(3)
    wishes = [GREEDY, DRAWN, PENALIZED, SPECIAL]
    rows = []
    for row in range(worker.max_rows):
        prompt = [draw.randrange(12, 500) for _ in range(draw.choice((1, 2, 5, 16, 20, 33, 70)))]
        rows.append(driver.sequence(row, prompt, sampling=wishes[row % 4]))
    first, size = 0, 1
    while first < len(rows):
        work = [(each, len(each.tokens)) for each in rows[first : first + size]]
        beside = [each for each in rows[:first] if each.failure is None][: first % 2]
        driver.step([*((each, 1) for each in beside), *work])
        first, size = first + size, size % 3 + 1
    for count in (worker.max_rows, worker.max_rows - 1, 17, 16, 9, 3, 2, 1):
        # As they come, and only those that want the usual draw. The host's sampler fails rows whose
        # logits happen to be no numbers.
        some = [each for each in rows[:count] if each.failure is None]
        driver.step([(each, 1) for each in some])
        driver.step([(each, 1) for each in some if each.sampling in (GREEDY, DRAWN)])
    again = driver.sequence(0, [*rows[-1].tokens, 50], sampling=DRAWN, prefix=rows[-1], copy=True)
    driver.step([(again, len(again.tokens) - again.computed)])


def serve_grammar(worker: Worker) -> None:
    """Two rows, one of them with a mask."""
    grammar = Grammar("regex", "[a-c]{5}")
    starts = [RowStart(0, [20], 1, GREEDY, grammar=grammar), RowStart(1, [21], 1, DRAWN)]
    worker.step(StepPlan(0, starts, [RowSlice(row, 0, 1, [row], True) for row in (0, 1)]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = dict(option.split("=") for option in sys.argv[2:])
    options = {name: int(value) if value.isdigit() else value for name, value in given.items()}
    launches = Launches()
    worker = make_paged_worker(Path(sys.argv[1]), fused_ops(), **options)
    worker.warmup()
    found = {"start": launches.clear()}
    serve(worker)
    serve_grammar(worker)
    found["serving"] = launches.clear()
    print(json.dumps(found))
