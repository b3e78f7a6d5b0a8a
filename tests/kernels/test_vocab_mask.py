"""The vocabulary mask against the specification, and that against bits counted by hand."""

import pytest
import torch

from support.kernels import CANARY, DEVICE, DTYPES, Guarded, normal
from tiercel_kernels.fused.vocab_mask import vocab_mask
from tiercel_kernels.reference import vocab_mask as reference


def _words(rows: int, count: int) -> torch.Tensor:
    """Random bits, the highest of a word included."""
    generator = torch.Generator().manual_seed(3)
    words = torch.randint(-(2**31), 2**31, (rows, count), generator=generator)
    return words.to(torch.int32).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [65024, 50304, 4096, 1000, 33, 1])
def test_grid(vocab: int, dtype: torch.dtype) -> None:
    logits = normal(3, vocab, dtype=dtype)
    words = _words(3, -(-vocab // 32) + 1)  # one word more than needed, as masks of libraries have
    words[1] = -1
    expected = logits.clone()
    reference.vocab_mask(expected, words)
    unchanged = logits[1].clone()
    vocab_mask(logits, words)
    assert torch.equal(logits, expected)
    assert torch.equal(logits[1], unchanged)


@pytest.mark.parametrize("op", [vocab_mask, reference.vocab_mask])
def test_bit_i_of_word_w_is_token_32_w_plus_i(op: object) -> None:
    assert callable(op)
    allowed = [0, 31, 32, 63, 69]
    words = [0, 0, 0]
    for token in allowed:
        words[token // 32] |= 1 << token % 32
    signed = [each - 2**32 if each >= 2**31 else each for each in words]
    logits = torch.zeros(1, 70, device=DEVICE)
    op(logits, torch.tensor([signed], dtype=torch.int32, device=DEVICE))
    assert logits[0].isfinite().nonzero().flatten().tolist() == allowed


def test_nothing_beside_the_logits_is_written() -> None:
    logits = Guarded(3, 1000, torch.float32)
    vocab_mask(logits.inner, torch.zeros(3, 32, dtype=torch.int32, device=DEVICE))
    assert logits.intact()
    assert bool((logits.inner == -torch.inf).all())


def test_no_rows() -> None:
    vocab_mask(normal(0, 64, dtype=torch.float32), _words(0, 2))


def test_what_does_not_fit_is_refused() -> None:
    logits = torch.full((2, 65), CANARY, device=DEVICE)
    with pytest.raises(ValueError, match="words are"):
        vocab_mask(logits, _words(2, 2))
    with pytest.raises(ValueError, match="words are"):
        vocab_mask(logits, _words(3, 3))
    with pytest.raises(ValueError, match="int32"):
        vocab_mask(logits, _words(2, 3).long())
