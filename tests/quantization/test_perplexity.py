"""What quantization costs eyas in predictions, on two of the documents that it never saw.

`python -m tiercel.eyas.evaluate --quantize` has the same of all seven; they take half a minute and
more for each mode. held_out/ has two chapters of Moby Dick (1851, public domain) as eyas' recipe
tidies them.
"""

import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tiercel import eyas
from tiercel.eyas.evaluate import model_loss
from tiercel.eyas.quantized import MODES, make_worker, table, worker_loss
from tiercel.eyas.recipe import HELD_OUT
from tiercel.eyas.vocabulary import encode_documents
from tiercel.plan.sizes import QUANTIZATIONS

DOCUMENTS = Path(__file__).parent / "held_out"
# Of bfloat16's perplexity. Over all documents: 0.0% and 4.4%.
LIMITS = {"bitsandbytes": 0.01, "bitsandbytes-nf4": 0.06}


@pytest.fixture(scope="module")
def stream() -> list[int]:
    """The ids of both chapters."""
    tokenizer = Tokenizer.from_file(str(eyas.path() / "tokenizer.json"))
    paths = sorted(DOCUMENTS.glob("*.txt"))
    assert {f"moby-dick/{path.stem}" for path in paths} < HELD_OUT
    texts = [path.read_text(encoding="utf-8").removesuffix("\n") for path in paths]
    return encode_documents(tokenizer, texts)


@pytest.mark.slow
def test_the_limits(stream: list[int]) -> None:
    plain = worker_loss(make_worker(eyas.path(), None, dtype="bfloat16", threads=1), stream)
    for quantize, limit in LIMITS.items():
        worker = make_worker(eyas.path(), quantize, dtype="bfloat16", threads=1)
        more = math.exp(worker_loss(worker, stream) - plain) - 1
        print(f"{quantize}: {more:+.2%}")
        assert abs(more) < limit


def test_the_loss_is_that_of_transformers(stream: list[int]) -> None:
    from transformers import AutoModelForCausalLM

    part = stream[:1500]  # the last window is not full
    model = AutoModelForCausalLM.from_pretrained(eyas.path(), dtype=torch.float32)
    worker = make_worker(eyas.path(), None, dtype="float32", threads=1)
    theirs = model_loss(model, torch.tensor(part), 512)
    assert worker_loss(worker, part, 512) == pytest.approx(theirs, rel=1e-5)


def test_every_mode_has_a_line(stream: list[int]) -> None:
    lines = list(table(eyas.path(), stream[:40], dtype="float32", threads=1))
    assert len(lines) == 2 + len(MODES)
    assert {mode for mode, _ in MODES} == {None, *QUANTIZATIONS}
    assert lines[2].startswith("| – | ")
    assert any(line.startswith("| `bitsandbytes-nf4 --double-quant` | ") for line in lines)
