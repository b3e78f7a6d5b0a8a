"""Two ranks on the CUDA platform's code, two steps out, on CPUs: all of it but graphs and NCCL."""

import os
from pathlib import Path

import pytest
import torch

import tiercel_kernels
from parallel.test_engine import requests, served, wishing
from support.checkpoints import make_checkpoint
from support.engines import Answer, Staggered, engine_options
from tiercel.engine.assemble import limits_of, make_core
from tiercel.engine.ranked import RankedExecutor
from tiercel.parallel.alike import facts_of
from tiercel.parallel.launch import LocalRanks, local_world
from tiercel.parallel.membership import Membership
from tiercel.wire.messages import EngineStep
from tiercel.worker.cuda.platform import CudaPlatform
from tiercel.worker.worker import Worker
from tiercel_kernels.choose import reference_ops


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "overlap"), [("7b-71", True), ("7b-71", False), ("rw-1b", True)]
)
def test_paged_ranks_draw_the_tokens_of_one_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, overlap: bool
) -> None:
    roots = [Path(__file__).parents[1], Path(tiercel_kernels.__file__).parents[1]]
    paths = [*map(str, roots), str(roots[0].parent / "server"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    make_checkpoint(tmp_path, variant)
    small = {"max_batch_total_tokens": 288, "max_total_tokens": 256}
    asked = [each for each in wishing(requests(512)) if not each.prompt_logprobs]
    options = engine_options(
        tmp_path, "cpu", dtype="float32", num_shard=2, overlap=overlap,
        max_batch_prefill_tokens=48, **small,
    )  # fmt: skip
    answers = {each.id: Answer() for each in asked}

    def emit(step: EngineStep) -> None:
        for delta in step.deltas:
            assert delta.error is None
            answers[delta.request_id].ids += [token.id for token in delta.tokens]

    children, (world, listener) = LocalRanks("support.paged_follower"), local_world(2)
    children.start(options, world)
    platform = CudaPlatform(torch.device("cpu"), reference_ops(), overlap=overlap)
    members = Membership.meet(
        world, facts_of(options), timeout_s=60.0, on_lost=print, ended=children.ended,
        listener=listener,
    )  # fmt: skip
    members.connect(platform.device)
    worker = Worker(options, platform, ranks=members.group)
    spec = worker.load()
    worker.allocate()
    worker.warmup()
    executor = RankedExecutor(worker, members, children)
    core = make_core(options, limits_of(options, worker, spec), worker, emit, executor=executor)
    core.run(Staggered(asked, 4, 2))
    assert executor.depth == (2 if overlap else 1)
    alone = served(tmp_path, 1, asked, **small)
    for one, each in zip(alone.answers, asked, strict=True):
        assert answers[each.id].ids == one.ids
