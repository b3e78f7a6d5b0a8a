"""CUDA graphs against eager steps, bit for bit; overlapped against plain steps, by tokens.

On a CPU neither option changes anything: there the tests show that a run repeats itself exactly.
"""

import random
from pathlib import Path

import pytest

from support.engines import DEVICES, Run, engine_options, run_engine
from support.widths import make_wide, vocabulary
from tiercel.wire.request import GenerationRequest, SamplingParams

REQUESTS = 20


def requests_of(vocab: int, seed: int, *, stops: bool) -> list[GenerationRequest]:
    """Batches of every size up to 16: all lengths, greedy and drawn, some ended by a token."""
    draw = random.Random(seed)
    made = []
    for number in range(REQUESTS):
        params = SamplingParams(seed=number, top_n_tokens=2 if number % 5 == 0 else 0)
        if number % 2:
            params = SamplingParams(
                do_sample=True,
                temperature=draw.choice((0.7, 1.3)),
                top_k=draw.choice((0, 40)),
                top_p=draw.choice((1.0, 0.9)),
                repetition_penalty=draw.choice((1.0, 1.2)),
                seed=draw.getrandbits(64),
            )
        prompt = [draw.randrange(vocab) for _ in range(draw.choice((1, 7, 40, 150)))]
        ends = list(range(number % 11, vocab, 11)) if stops and number % 3 == 0 else []
        new = draw.choice((3, 12, 40))
        made.append(GenerationRequest(number, prompt, new, params, ends))
    return made


def _checked(run: Run) -> Run:
    assert [answer.error for answer in run.answers] == [None] * REQUESTS
    assert all(answer.finish_reason for answer in run.answers)
    assert run.stats.free_blocks == run.stats.total_blocks
    return run


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("variant", "dtype"), [("7b", "bfloat16"), ("11b", "float32")])
def test_a_graph_gives_the_bits_of_eager_steps(
    tmp_path: Path, variant: str, dtype: str, device: str
) -> None:
    make_wide(tmp_path, variant, device, dtype)
    requests = requests_of(vocabulary(variant, device), 1, stops=False)
    runs = []
    for graphs in (True, False):
        options = engine_options(
            tmp_path, device, dtype=dtype, cuda_graphs=graphs, overlap=False, prefix_caching=False
        )
        runs.append(_checked(run_engine(options, requests, at_once=3, every=4)))
    captured, eager = (run.answers for run in runs)
    for ours, theirs in zip(captured, eager, strict=True):
        assert ours.ids == theirs.ids
        assert ours.logprobs == theirs.logprobs  # floats, equal to the last bit
        assert ours.tops == theirs.tops


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", ["7b", "rw-1b"])
def test_overlapped_steps_give_the_tokens_of_plain_ones(
    tmp_path: Path, variant: str, device: str
) -> None:
    """With ends by a token, which overlapped steps learn one step late, and with preemption."""
    make_wide(tmp_path, variant, device, "float32")
    requests = requests_of(vocabulary(variant, device), 2, stops=True)
    runs = []
    for overlap in (True, False):
        options = engine_options(
            tmp_path,
            device,
            dtype="float32",
            overlap=overlap,
            max_batch_total_tokens=256,
            max_total_tokens=192,
        )
        runs.append(_checked(run_engine(options, requests, at_once=10, every=3)))
    overlapped, plain = (run.answers for run in runs)
    assert [each.ids for each in overlapped] == [each.ids for each in plain]
    assert [each.finish_reason for each in overlapped] == [each.finish_reason for each in plain]
    assert {"eos_token", "length"} == {each.finish_reason for each in plain}
    assert runs[1].stats.preemptions > 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_alone_gives_the_tokens_it_gives_among_others(tmp_path: Path, device: str) -> None:
    make_wide(tmp_path, "7b", device, "float32")
    requests = requests_of(vocabulary("7b", device), 3, stops=False)
    options = engine_options(tmp_path, device, dtype="float32", prefix_caching=False)
    together = _checked(run_engine(options, requests)).answers
    one_row = engine_options(
        tmp_path, device, dtype="float32", prefix_caching=False, max_batch_size=1
    )
    alone = _checked(run_engine(one_row, requests)).answers
    assert [each.ids for each in alone] == [each.ids for each in together]
