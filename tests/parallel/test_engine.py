"""Several ranks against one: the same tokens for the same requests, on CPUs over gloo."""

import os
import random
from pathlib import Path

import msgspec
import pytest
import torch
import torch.distributed as dist

from support.bitsandbytes_models import save_quantized
from support.checkpoints import make_checkpoint
from support.engines import Run, Staggered, engine_options, run_engine
from tiercel.engine.assemble import assemble
from tiercel.wire.messages import EngineStep
from tiercel.wire.request import GenerationRequest, SamplingParams

# A process per rank on two cores: the rest of WORLDS takes minutes, and `make ranks` runs it.
USUAL = [("7b-71", 2), ("7b", 4), ("40b", 2), ("180b", 4), ("11b", 2), ("rw-1b", 2), ("7b-71", 8)]
WORLDS = [
    *[(variant, 2) for variant in ("7b", "7b-resaved", "180b", "rw-7b")],
    *[(variant, 4) for variant in ("7b-71", "40b", "11b", "rw-1b")],
    *[(variant, 8) for variant in ("40b", "180b", "11b")],
    ("rw-7b", 3),
    ("rw-8-heads", 8),
]
SIZES = {"rw-8-heads": {"variant": "rw-1b", "heads": 8, "kv_heads": 8}}
EVERYTHING = bool(os.environ.get("ALL_WORLDS"))
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


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "ranks"), USUAL + (WORLDS if EVERYTHING else []))
def test_greedy_ids_equal_those_of_one_rank(tmp_path: Path, variant: str, ranks: int) -> None:
    make_checkpoint(tmp_path, **SIZES.get(variant, {"variant": variant}))
    asked = requests(512)
    alone, together = served(tmp_path, 1, asked), served(tmp_path, ranks, asked)
    for one, several in zip(alone.answers, together.answers, strict=True):
        assert several.error is None
        assert several.ids == one.ids
        assert several.logprobs == pytest.approx(one.logprobs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "ranks", "vocab_size"), [("7b-71", 2, 512), ("40b", 4, 510), ("rw-1b", 2, 511)]
)
def test_the_whole_vocabulary_has_the_logprobs_of_one_rank(
    tmp_path: Path, variant: str, ranks: int, vocab_size: int
) -> None:
    """Also where it is padded to be dealt out: the padding has no probability."""
    make_checkpoint(tmp_path, variant, vocab_size=vocab_size)
    wish = SamplingParams(top_n_tokens=vocab_size)
    asked = [
        GenerationRequest(number, [20 + number] * length, 4, wish, [])
        for number, length in enumerate((1, 9, 70))
    ]
    alone, together = served(tmp_path, 1, asked), served(tmp_path, ranks, asked)
    for one, several in zip(alone.answers, together.answers, strict=True):
        assert several.ids == one.ids and len(one.ids) == 4
        for top, same in zip(one.tops, several.tops, strict=True):
            assert set(top) == set(same) == set(range(vocab_size))
            assert same == pytest.approx(top, abs=1e-4)


WISHES = (
    SamplingParams(do_sample=True, temperature=1.3, top_p=0.9),
    SamplingParams(repetition_penalty=1.2, count_penalty=0.3),
    SamplingParams(do_sample=True, top_k=20, typical_p=0.8, top_n_tokens=3),
    SamplingParams(do_sample=True, watermark=True),
    SamplingParams(logit_bias=((END, 6.0),)),
    SamplingParams(),
)


def wishing(asked: list[GenerationRequest]) -> list[GenerationRequest]:
    """The same prompts with all that can be asked of a draw, and logprobs of the prompt."""
    return [
        msgspec.structs.replace(
            each,
            sampling=msgspec.structs.replace(WISHES[each.id % len(WISHES)], seed=each.id),
            prompt_logprobs=each.id % 4 == 0,
            max_new_tokens=64,
        )
        for each in asked
    ]


@pytest.mark.slow
def test_only_the_first_rank_draws(tmp_path: Path) -> None:
    """Penalties, masks, top tokens and prompts' logprobs, in a cache so small that rows wait."""
    make_checkpoint(tmp_path, "7b-71")
    asked = wishing(requests(512))
    small = {"max_batch_total_tokens": 288, "max_total_tokens": 256}
    alone, together = (served(tmp_path, ranks, asked, **small) for ranks in (1, 2))
    assert together.stats.preemptions > 0
    for one, several in zip(alone.answers, together.answers, strict=True):
        assert several.error is None
        assert several.ids == one.ids
        assert several.logprobs == pytest.approx(one.logprobs, abs=1e-4)
        assert [set(top) for top in several.tops] == [set(top) for top in one.tops]
        assert several.prompt_logprobs == pytest.approx(one.prompt_logprobs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "per_layer"), [("7b", 1), ("40b", 1), ("rw-1b", 2)])
def test_one_all_reduce_per_parallel_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, per_layer: int
) -> None:
    """And one for the embedding; the head's columns are gathered."""
    make_checkpoint(tmp_path, variant, layers=3)
    reduced: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        reduced.append(len(tensor))
        return all_reduce(tensor, *args, **kwargs)

    emitted: list[EngineStep] = []
    options = engine_options(tmp_path, "cpu", dtype="float32", num_shard=2)
    core, _ = assemble(options, emitted.append)
    monkeypatch.setattr(dist, "all_reduce", counted)
    core.run(Staggered(requests(512)[:1], 1, 1))
    steps = sum(step.timing is not None for step in emitted)
    assert steps > 5
    assert len(reduced) == steps * (3 * per_layer + 1)


# How far logprobs of a prompt's tokens may be from those of one rank, in its own distance from the
# unquantized model. Columns of int8 have a scale for each rank, which is only finer; in 4 bits a
# rank's blocks are those of one rank where a head is whole blocks, as in every published model.
APART = {("7b", "bitsandbytes"): 0.5, ("7b", "bitsandbytes-nf4"): 0.01}
APART |= {("rw-1b", "bitsandbytes"): 0.5, ("rw-1b", "bitsandbytes-nf4"): 0.01}


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "quantize"), APART)
def test_quantized_ranks(tmp_path: Path, variant: str, quantize: str) -> None:
    make_checkpoint(tmp_path, variant, head_dim=64)
    asked = [msgspec.structs.replace(each, prompt_logprobs=True) for each in requests(512)]
    plain, alone, together = (
        served(tmp_path, ranks, asked, quantize=mode)
        for ranks, mode in ((1, None), (1, quantize), (2, quantize))
    )
    assert all(answer.error is None for answer in together.answers)
    one, several, exact = (_prompts(run) for run in (alone, together, plain))
    apart, off = (several - one).abs().mean(), (one - exact).abs().mean()
    equal = sum(a.ids == b.ids for a, b in zip(alone.answers, together.answers, strict=True))
    print(f"\n{variant} {quantize}: {apart:.5f} apart, {off:.5f} off; {equal} of 16 answers equal")
    assert apart <= APART[variant, quantize] * off
    if quantize == "bitsandbytes-nf4":
        assert equal == len(asked)


def _prompts(run: Run) -> torch.Tensor:
    values = [each.prompt_logprobs or [] for each in run.answers]
    return torch.tensor([value for each in values for value in each if value is not None])


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["bitsandbytes", "bitsandbytes-nf4"])
def test_saved_quantized_weights_are_dealt_out_as_they_are(tmp_path: Path, quantize: str) -> None:
    """Nothing is quantized again: float32 gives the tokens of one rank."""
    source = make_checkpoint(tmp_path / "plain", "40b", head_dim=64)
    folder = tmp_path / "saved"
    save_quantized(source, folder, quantize, double_quant=False)
    asked = requests(512)
    alone, together = served(folder, 1, asked), served(folder, 2, asked)
    for one, several in zip(alone.answers, together.answers, strict=True):
        assert several.error is None
        assert several.ids == one.ids
        assert several.logprobs == pytest.approx(one.logprobs, abs=1e-3)
