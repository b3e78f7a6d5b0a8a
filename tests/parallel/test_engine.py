"""Several ranks against one: the same tokens for the same requests, on CPUs over gloo."""

import random
from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint
from support.engines import Run, engine_options, run_engine
from tiercel.wire.request import GenerationRequest, SamplingParams

CASES = [
    ("7b", 2, {}),
    ("7b", 4, {}),
    ("7b-71", 2, {}),
    ("7b-71", 4, {}),
    ("7b-71", 8, {}),
    ("7b-resaved", 2, {}),
    ("40b", 2, {}),
    ("40b", 4, {}),
    ("40b", 8, {}),
    ("180b", 4, {}),
    ("180b", 8, {}),
    ("11b", 2, {}),
    ("11b", 8, {}),
    ("rw-1b", 2, {}),
    ("rw-1b", 8, {"heads": 8, "kv_heads": 8}),
    ("rw-7b", 3, {}),
]
END = 11


def requests(vocab_size: int) -> list[GenerationRequest]:
    """16 at once: long and short, with common beginnings, greedy ones and others."""
    draw = random.Random(7)
    common = [draw.randrange(20, vocab_size) for _ in range(40)]
    asked = []
    for number in range(16):
        prompt = common[: draw.choice((0, 7, 40))]
        prompt = prompt + [draw.randrange(20, vocab_size) for _ in range(draw.choice((1, 9, 70)))]
        asked.append(GenerationRequest(number, prompt, 24, SamplingParams(), [END]))
    return asked


def served(folder: Path, ranks: int, asked: list[GenerationRequest], **options: object) -> Run:
    given = {"dtype": "float32", "num_shard": ranks, "max_batch_prefill_tokens": 48} | options
    return run_engine(engine_options(folder, "cpu", **given), asked, at_once=4, every=2)


@pytest.mark.parametrize(("variant", "ranks", "sizes"), CASES)
def test_greedy_ids_equal_those_of_one_rank(
    tmp_path: Path, variant: str, ranks: int, sizes: dict[str, int]
) -> None:
    make_checkpoint(tmp_path, variant, **sizes)
    asked = requests(512)
    alone, together = served(tmp_path, 1, asked), served(tmp_path, ranks, asked)
    for one, several in zip(alone.answers, together.answers, strict=True):
        assert several.error is None
        assert several.ids == one.ids
        assert several.logprobs == pytest.approx(one.logprobs, abs=1e-4)
