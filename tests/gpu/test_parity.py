"""The engine against transformers on the same device: float32 ids and logprobs, bfloat16 errors.

True widths with two layers on a GPU, narrow ones on a CPU. transformers' eager attention adds ALiBi
twice, so that its reference there is sdpa.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import SHAPES, load_reference
from support.engines import DEVICES, Answer, engine_options, release, run_engine
from support.widths import TRUE, make_wide, vocabulary
from tiercel.wire.request import GenerationRequest, SamplingParams

PROMPT_TOKENS = (1, 16, 33, 130, 700)
NEW_TOKENS = 24
TOLERANCE = {"cpu": 2e-4, "cuda": 1e-3}  # of logprobs in float32


def _requests(vocab: int, prompt_logprobs: int = -1) -> list[GenerationRequest]:
    """Greedy, each with its best three tokens; one of them with its prompt's logprobs."""
    draw = random.Random(5)
    return [
        GenerationRequest(
            number,
            [draw.randrange(vocab) for _ in range(count)],
            NEW_TOKENS,
            SamplingParams(top_n_tokens=3),
            [],
            prompt_logprobs=number == prompt_logprobs,
        )
        for number, count in enumerate(PROMPT_TOKENS)
    ]


def _reference(folder: Path, variant: str, device: str) -> Any:
    attention = "sdpa" if SHAPES[variant].alibi else "eager"
    return load_reference(folder, attention=attention).to(device)


def _logprobs(model: Any, request: GenerationRequest, answer: Answer) -> torch.Tensor:
    """After every token that we have, but for the last: float32 [tokens, vocab] on the CPU."""
    tokens = [*request.token_ids, *answer.ids[:-1]]
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = model(torch.tensor([tokens], device=device)).logits[0]
    return logits.float().log_softmax(-1).cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", TRUE)
def test_float32_gives_the_same_ids_and_logprobs(tmp_path: Path, variant: str, device: str) -> None:
    make_wide(tmp_path, variant, device, "float32")
    requests = _requests(vocabulary(variant, device), prompt_logprobs=3)
    options = engine_options(tmp_path, device, dtype="float32", prefix_caching=False)
    run = run_engine(options, requests)
    model = _reference(tmp_path, variant, device)
    allowed = TOLERANCE[device]
    for request, answer in zip(requests, run.answers, strict=True):
        assert answer.error is None
        assert len(answer.ids) == NEW_TOKENS
        every = _logprobs(model, request, answer)
        theirs = every[len(request.token_ids) - 1 :]
        # transformers reads what we generated: where its best token is ours at every place, its
        # own greedy continuation is the same. A tie within the tolerance may go either way.
        chosen = theirs[range(NEW_TOKENS), answer.ids]
        assert (theirs.max(-1).values - chosen).max().item() <= allowed
        assert (chosen - torch.tensor(answer.logprobs)).abs().max().item() <= allowed
        for line, top in zip(theirs, answer.tops, strict=True):
            assert len(top) >= 3
            for token, logprob in top.items():
                assert abs(line[token].item() - logprob) <= allowed
        if request.prompt_logprobs:
            assert answer.prompt_logprobs is not None
            ours = torch.tensor(answer.prompt_logprobs[1:])
            prompt = request.token_ids[1:]
            assert (every[range(len(prompt)), prompt] - ours).abs().max().item() <= allowed
    assert run.stats.free_blocks == run.stats.total_blocks
    del model
    release()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", TRUE)
def test_bfloat16_is_as_close_to_float32_as_transformers_is(
    tmp_path: Path, variant: str, device: str
) -> None:
    """All three have the same, rounded, weights; errors of the best tokens' logprobs."""
    make_wide(tmp_path, variant, device, "bfloat16")
    requests = _requests(vocabulary(variant, device))
    run = run_engine(engine_options(tmp_path, device, dtype="bfloat16"), requests)
    half = _reference(tmp_path, variant, device)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("bfloat16", "float32"))
    exact = _reference(tmp_path, variant, device)
    half.transformer.rotary_emb = exact.transformer.rotary_emb  # .to() has rounded its frequencies
    ours: list[float] = []
    theirs: list[float] = []
    for request, answer in zip(requests, run.answers, strict=True):
        assert answer.error is None
        first = len(request.token_ids) - 1
        right, rounded = (_logprobs(model, request, answer)[first:] for model in (exact, half))
        for place, top in enumerate(answer.tops):
            for token, logprob in top.items():
                ours.append((logprob - right[place, token].item()) ** 2)
                theirs.append((rounded[place, token].item() - right[place, token].item()) ** 2)
    assert len(ours) >= 3 * NEW_TOKENS * len(PROMPT_TOKENS)
    assert sum(ours) < 1.3 * sum(theirs)
    del half, exact
    release()
