"""Quantized layers in the engine: graphs against eager steps, few rows and many.

On a CPU the layers are the CPU's own, and there the tests show that a run repeats itself exactly;
the GPU's layers over the ops' specification are in tests/worker/cuda.
"""

import random
from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint
from support.engines import DEVICES, engine_options, run_engine
from support.widths import TRUE
from tiercel.wire.request import GenerationRequest, SamplingParams
from tiercel_kernels.reference.skinny_linear import MAX_ROWS

# More than the kernels of few rows take: the largest batches write the weights out, in graphs too.
ROWS = {"cpu": 4, "cuda": MAX_ROWS + 16}
NARROW = {"heads": 4, "head_dim": 64, "vocab_size": 512}  # a width of whole blocks


def _requests(rows: int, vocab: int) -> list[GenerationRequest]:
    """More than there are rows, of all lengths, so that batches of every size are there."""
    draw = random.Random(7)
    made = []
    for number in range(rows + rows // 2):
        params = SamplingParams()
        if number % 2:
            params = SamplingParams(
                do_sample=True, seed=number, top_k=40, repetition_penalty=draw.choice((1.0, 1.2))
            )
        prompt = [draw.randrange(vocab) for _ in range(draw.choice((1, 7, 25, 60)))]
        made.append(GenerationRequest(number, prompt, draw.choice((3, 12, 24)), params, []))
    return made


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantize", ["bitsandbytes", "bitsandbytes-nf4"])
def test_a_graph_gives_the_bits_of_eager_steps(tmp_path: Path, quantize: str, device: str) -> None:
    sizes = NARROW if device == "cpu" else TRUE["7b"]
    layers = 1 if device == "cpu" else 2
    folder = make_checkpoint(
        tmp_path, "7b", dtype="bfloat16", max_positions=2048, layers=layers, **sizes
    )
    requests = _requests(ROWS[device], sizes["vocab_size"])
    answers = []
    for graphs in (True, False):
        options = engine_options(
            folder,
            device,
            dtype="bfloat16",
            quantize=quantize,
            cuda_graphs=graphs,
            overlap=False,
            prefix_caching=False,
            max_batch_size=ROWS[device],
        )
        run = run_engine(options, requests, at_once=5, every=2)
        assert [answer.error for answer in run.answers] == [None] * len(requests)
        answers.append(run.answers)
    for ours, theirs in zip(*answers, strict=True):
        assert ours.ids == theirs.ids
        assert ours.logprobs == theirs.logprobs  # floats, equal to the last bit
