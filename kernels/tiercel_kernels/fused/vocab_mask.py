"""vocab_mask: touches only the logits that are forbidden, and no logits of rows without a mask."""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import CompileCase
from tiercel_kernels.reference.vocab_mask import check

BLOCK = 1024


# Words per row are a multiple of 16 for some vocabularies, and nothing is gained by it.
@triton.jit(do_not_specialize=["words_stride"])
def vocab_mask_kernel(logits_ptr, words_ptr, vocab, stride, words_stride, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    word = tl.load(words_ptr + row * words_stride + token // 32, mask=inside, other=-1)
    forbidden = inside & (((word >> (token % 32)) & 1) == 0)
    minus_infinity = tl.full([BLOCK], float("-inf"), logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + row * stride + token, minus_infinity, mask=forbidden)


def vocab_mask(logits: torch.Tensor, words: torch.Tensor) -> None:
    """See reference.vocab_mask. At most 65,535 rows."""
    check(logits, words)
    rows, vocab = logits.shape
    if rows:
        vocab_mask_kernel[(triton.cdiv(vocab, BLOCK), rows)](
            logits, words, vocab, logits.stride(0), words.stride(0), BLOCK=BLOCK
        )


COMPILE_CASES = [
    CompileCase(
        vocab_mask_kernel,
        dtype,
        {
            "logits_ptr": f"*{dtype}",
            "words_ptr": "*i32",
            "vocab": "i32",
            "stride": "i32",
            "words_stride": "i32",
        },
        {"BLOCK": BLOCK},
        aligned=("vocab", "stride"),
    )
    for dtype in ("bf16", "fp16", "fp32")
]
