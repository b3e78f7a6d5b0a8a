"""Every Falcon variant against transformers, in float32, through Worker.step.

The reference reads what we generated in one pass: where its argmax agrees at every position, its
own greedy continuation is the same. transformers' eager attention adds ALiBi twice (once in the
mask, once in the scores), so the reference for ALiBi is its default, sdpa.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import DIALECTS, SHAPES, VARIANTS, load_reference, make_checkpoint
from support.plans import PlanDriver, Sequence
from support.workers import RecordingSampler, make_worker
from tiercel.worker.worker import Worker

PROMPT_TOKENS = (1, 16, 33, 130, 300)
NEW_TOKENS = 64
TOLERANCE = 1e-4


class Pair:
    """A worker and transformers' model of the same checkpoint."""

    def __init__(self, folder: Path, variant: str, **shape: Any) -> None:
        make_checkpoint(folder, variant, **shape)
        self.worker: Worker = make_worker(folder)
        attention = "sdpa" if SHAPES[variant].alibi else "eager"
        self.reference = load_reference(folder, attention=attention)

    def check(self, sequence: Sequence) -> None:
        """Logits within the tolerance, greedy ids equal."""
        assert sequence.failure is None
        sampler = self.worker.runner.sampler
        assert isinstance(sampler, RecordingSampler)
        ours = sampler.recorded(sequence.row)
        tokens = torch.tensor([sequence.tokens[:-1]])
        with torch.inference_mode():
            theirs = self.reference(tokens).logits[0, sequence.prompt_tokens - 1 :]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max().item() < TOLERANCE
        assert sequence.generated == theirs.argmax(-1).tolist()

    def driver(self) -> PlanDriver:
        sampler = self.worker.runner.sampler
        assert isinstance(sampler, RecordingSampler)
        sampler.logits.clear()
        return PlanDriver(self.worker)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    threads = torch.get_num_threads()
    yield Pair(tmp_path_factory.mktemp("parity"), request.param)
    torch.set_num_threads(threads)


def prompts() -> list[list[int]]:
    draw = random.Random(7)
    return [[draw.randrange(512) for _ in range(count)] for count in PROMPT_TOKENS]


@pytest.mark.parametrize("chunk", [11, 64, 1024])
def test_logits_and_greedy_ids_with_chunked_prefill(pair: Pair, chunk: int) -> None:
    driver = pair.driver()
    sequences = [driver.sequence(row, prompt) for row, prompt in enumerate(prompts())]
    driver.run(sequences, NEW_TOKENS, chunk=chunk)
    for sequence in sequences:
        assert len(sequence.generated) == NEW_TOKENS
        pair.check(sequence)


def test_a_prefix_hit_changes_nothing(pair: Pair) -> None:
    driver = pair.driver()
    prompt = prompts()[-1]
    first = driver.sequence(0, prompt)
    driver.run([first], 4)
    for row, shared in enumerate((16, 144, 299), start=1):
        hit = driver.sequence(row, [*prompt[:shared], *prompts()[2]], prefix=first)
        assert hit.computed == shared // 16 * 16
        driver.run([hit], 8, chunk=40)
        pair.check(hit)
    again = driver.sequence(5, prompt, prefix=first)
    assert again.computed == 288
    driver.run([again], 4)
    pair.check(again)
    assert again.generated == first.generated


def test_prefix_hits_with_all_prompts_and_many_new_tokens(pair: Pair) -> None:
    """Each prompt again, behind its own cached blocks, as far as the first time."""
    driver = pair.driver()
    for number, prompt in enumerate(prompts()):
        first, again = 2 * number, 2 * number + 1
        donor = driver.sequence(first, prompt)
        driver.run([donor], NEW_TOKENS)
        hit = driver.sequence(again, prompt, prefix=donor)
        assert hit.computed == (len(prompt) - 1) // 16 * 16
        driver.run([hit], NEW_TOKENS, chunk=40)
        pair.check(hit)
        assert hit.generated == donor.generated


def test_a_part_of_a_block_that_was_copied_changes_nothing(pair: Pair) -> None:
    """Equal up to the middle of a block, and the same prompt again: its last token is computed."""
    driver = pair.driver()
    prompt = prompts()[-1]
    donor = driver.sequence(0, prompt)
    driver.run([donor], NEW_TOKENS)
    for row, shared in enumerate((5, 145, 299, 340), start=1):
        tokens = [*donor.tokens[:shared], *(each ^ 1 for each in donor.tokens[shared:][:1]), 5, 6]
        hit = driver.sequence(row, tokens, prefix=donor, copy=True)
        assert (hit.computed, len(hit.blocks)) == (shared, shared // 16)
        driver.run([hit], 8, chunk=40)
        pair.check(hit)
    again = driver.sequence(5, prompt, prefix=donor, copy=True)
    assert again.computed == 299
    driver.run([again], NEW_TOKENS)
    pair.check(again)
    assert again.generated == donor.generated


@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "no-prefix"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_dialect_head_and_naming(
    tmp_path: Path, variant: str, dialect: str, tied: bool, prefix: bool
) -> None:
    made = Pair(tmp_path, variant, dialect=dialect, tied=tied, prefix=prefix)
    driver = made.driver()
    sequence = driver.sequence(0, prompts()[2])
    driver.run([sequence], 12)
    made.check(sequence)


def test_linear_rope_scaling(tmp_path: Path) -> None:
    scaling = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    made = Pair(tmp_path, "7b", max_positions=64, extra=scaling)
    driver = made.driver()
    sequence = driver.sequence(0, prompts()[3])  # 130 tokens: beyond the original context
    driver.run([sequence], 12)
    made.check(sequence)


def test_a_preempted_sequence_goes_on_as_if_nothing_had_happened(pair: Pair) -> None:
    driver = pair.driver()
    whole = driver.sequence(0, prompts()[3])
    driver.run([whole], 40)
    cut = driver.sequence(1, prompts()[3])
    driver.run([cut], 17)
    resumed = driver.sequence(2, cut.tokens)
    resumed.prompt_tokens = len(prompts()[3])
    driver.release(cut)
    driver.run([resumed], 40, chunk=50)
    assert resumed.generated == whole.generated
