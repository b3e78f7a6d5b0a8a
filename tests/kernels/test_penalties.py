"""The penalties against the specification, and that against the server's processors."""

import numpy as np
import pytest
import torch

from support.kernels import DEVICE, Allocations, Guarded, normal
from tiercel.sampling.processors import FrequencyPenalty, GeneratedPenalty, RepetitionPenalty
from tiercel.wire.request import SamplingParams
from tiercel_kernels.fused.penalties import penalties
from tiercel_kernels.reference import penalties as reference
from tiercel_kernels.reference.penalties import Penalties

# Per row: repetition, frequency, presence, count; known tokens, of which so many are the prompt.
ROWS = [
    ((1.3, 0.0, 0.0, 0.0), 40, 40),
    ((1.0, 0.7, 0.0, 0.0), 1500, 900),
    ((1.0, 0.0, 0.9, 0.2), 50, 10),
    ((0.8, -0.4, -0.5, 1.5), 1025, 1),
    ((1.0, 0.0, 0.0, 0.0), 30, 5),
    ((2.0, 1.0, 1.0, 1.0), 0, 0),
    ((2.0, 1.0, 1.0, 1.0), 1, 0),
]


def _values(rows: list[tuple[float, float, float, float]]) -> Penalties:
    return Penalties(*torch.tensor(rows, dtype=torch.float32).T.contiguous().to(DEVICE))


def _batch(vocab: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Penalties]:
    generator = torch.Generator().manual_seed(5)
    # Few distinct ids, so that they occur often; behind a row's tokens lies what must not count.
    tokens = torch.randint(0, min(vocab, 60), (len(ROWS), 1600), generator=generator).int()
    tokens[:, ::7] = vocab - 1
    lengths, prompts = (torch.tensor([row[i] for row in ROWS]).int() for i in (1, 2))
    columns = [each.to(DEVICE) for each in (tokens, lengths, prompts)]
    values = _values([row[0] for row in ROWS])
    return normal(len(ROWS), vocab, dtype=torch.float32), columns[0], columns[1], columns[2], values


@pytest.mark.parametrize("vocab", [4096, 1000, 8])
def test_grid(vocab: int) -> None:
    logits, *rest = _batch(vocab)
    expected = logits.clone()
    reference.penalties(expected, *rest)
    before = logits.clone()
    with Allocations() as made:  # the counts
        penalties(logits, *rest)
    assert made.intact()
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-5)
    assert torch.equal(logits[4:6], before[4:6])
    assert not torch.equal(logits[3], before[3])


def test_falcons_vocabulary() -> None:
    logits, tokens, lengths, prompts, _ = _batch(65024)
    expected = logits[3:4].clone()
    row = (tokens[3:4], lengths[3:4], prompts[3:4], _values([ROWS[3][0]]))
    reference.penalties(expected, *row)
    penalties(logits[3:4], *row)
    torch.testing.assert_close(logits[3:4], expected, rtol=1e-6, atol=1e-5)


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    logits, tokens, lengths, prompts, values = _batch(1000)
    alone = logits[3:4].clone()
    penalties(logits, tokens, lengths, prompts, values)
    values = _values([ROWS[3][0]])
    penalties(alone, tokens[3:4], lengths[3:4], prompts[3:4], values)
    assert torch.equal(alone[0], logits[3])


def test_nothing_beside_the_logits_is_written_and_ids_outside_are_left_out() -> None:
    logits = Guarded(1, 100, torch.float32)
    logits.inner.fill_(1.0)
    tokens = torch.tensor([[5, 100, 131, -1, -40, 2**31 - 1]], dtype=torch.int32, device=DEVICE)
    length = torch.tensor([6], dtype=torch.int32, device=DEVICE)
    penalties(logits.inner, tokens, length, length * 0, _values([(2.0, 6.0, 0.0, 0.0)]))
    assert logits.intact()
    changed = (logits.inner[0] != 1.0).nonzero().flatten().tolist()
    assert changed == [5]
    assert float(logits.inner[0, 5]) == 1.0 / 2 - 6.0 / 6


def test_the_specification_is_the_servers() -> None:
    logits, tokens, lengths, prompts, values = _batch(1000)
    expected = logits.cpu().clone()
    for row, ((repetition, frequency, presence, count), length, prompt) in enumerate(ROWS):
        params = SamplingParams(
            repetition_penalty=repetition,
            frequency_penalty=frequency,
            presence_penalty=presence,
            count_penalty=count,
        )
        known = tokens[row, :length].cpu().numpy().astype(np.int64)
        for processor in (RepetitionPenalty(1), FrequencyPenalty(1), GeneratedPenalty(1)):
            if processor.wanted(params) and length:
                processor.start(0, params, prompt)
                processor.apply(expected[row : row + 1], [0], [known])
    reference.penalties(logits, tokens, lengths, prompts, values)
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-6, atol=1e-5)


def test_no_rows_and_no_tokens() -> None:
    logits, tokens, lengths, prompts, values = _batch(8)
    before = logits.clone()
    penalties(logits, tokens[:, :0], lengths * 0, prompts * 0, values)
    assert torch.equal(logits, before)
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    penalties(logits[:0], tokens[:0], empty, empty, Penalties(*[empty.float()] * 4))


def test_what_does_not_fit_is_refused() -> None:
    logits, tokens, lengths, prompts, values = _batch(8)
    with pytest.raises(ValueError, match="7 rows"):
        penalties(logits, tokens, lengths[:2], prompts, values)
    with pytest.raises(ValueError, match="int32"):
        penalties(logits, tokens.long(), lengths, prompts, values)
    with pytest.raises(ValueError, match="float32"):
        penalties(logits.half(), tokens, lengths, prompts, values)
