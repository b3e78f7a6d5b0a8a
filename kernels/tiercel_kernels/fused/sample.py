"""sample without a sort: one program per row searches the thresholds of top-k, top-p and typical.

A search halves the range of float32 bit patterns between two logits of the row, a pass over the row
per step. Masses are integers, so that their sums do not depend on the order they are added in.
"""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import CompileCase
from tiercel_kernels.reference.sample import GROUPS, SampleParams, check, group_shape

# With 8 warps, or more tokens per warp, ptxas spills on sm_80.
BLOCK = 4096
NUM_WARPS = 16

LOWEST = tl.constexpr(-(2**31))  # below the key of any number
HIGHEST = tl.constexpr(2**31 - 1)
ONE = tl.constexpr(float(2**44))  # the mass of the likeliest token; 2^19 of them fit in int64
DRAW_GROUPS = tl.constexpr(GROUPS)
BY_COUNT = tl.constexpr(0)
BY_MASS = tl.constexpr(1)
BY_CLOSENESS = tl.constexpr(2)
# Rows of one upload, which begin at any multiple of 8 bytes: a binary for each way that they may be
# aligned would be compiled while serving.
PARAMETERS = {
    "temperature_ptr": "*fp32",
    "top_k_ptr": "*i32",
    "top_p_ptr": "*fp64",
    "typical_ptr": "*fp64",
    "draws_ptr": "*i32",
    "seed_ptr": "*i64",
    "position_ptr": "*i64",
}


@triton.jit
def _key(value):
    """float32 -> int32 of the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _load(logits, token, vocab):
    """-inf behind the vocabulary, and one zero instead of two."""
    value = tl.load(logits + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    return tl.where(value == 0.0, 0.0, value)


@triton.jit
def _mass(scaled):
    return (tl.exp(scaled) * ONE).to(tl.int64)


@triton.jit
def _kept(token, key, cut, tie):
    """What top-k and top-p left: above the cut, and of the ties with it the ids from `tie` on."""
    return (key > cut) | ((key == cut) & (token >= tie))


@triton.jit
def _largest(logits, vocab, BLOCK: tl.constexpr):
    """The largest logit; NaN where the row has a NaN, +inf, or only -inf."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    wrong = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab, BLOCK):
        value = _load(logits, start + tl.arange(0, BLOCK), vocab)
        wrong |= (value != value).to(tl.int32)
        best = tl.maximum(best, value)
    largest = tl.max(best, axis=0)
    wrong_row = (tl.max(wrong, axis=0) > 0) | (largest == float("inf")) | (largest == float("-inf"))
    return tl.where(wrong_row, float("nan"), largest)


@triton.jit
def _split(
    logits,
    vocab,
    largest,
    inverse,
    cut,
    tie,
    centre,
    pivot,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Weight of the kept tokens with keys from `pivot` on, the smallest of these keys, and the
    largest of the keys below."""
    weight = tl.zeros([BLOCK], tl.int64)
    above = tl.full([BLOCK], HIGHEST, tl.int32)
    below = tl.full([BLOCK], LOWEST, tl.int32)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value = _load(logits, token, vocab)
        key = _key(value)
        kept = _kept(token, key, cut, tie)
        scaled = (value - largest) * inverse
        if KIND == BY_CLOSENESS:
            key = _key(-tl.abs(scaled - centre))
        upper = kept & (key >= pivot)
        if KIND == BY_COUNT:
            weight += upper.to(tl.int64)
        else:
            weight += tl.where(upper, _mass(scaled), 0)
        above = tl.minimum(above, tl.where(upper, key, HIGHEST))
        below = tl.maximum(below, tl.where(kept & (key < pivot), key, LOWEST))
    return tl.sum(weight, axis=0), tl.min(above, axis=0), tl.max(below, axis=0)


@triton.jit
def _search(
    logits,
    vocab,
    largest,
    inverse,
    cut,
    tie,
    centre,
    target,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest key at which the tokens from it on weigh at least `target`."""
    low = tl.full([], LOWEST, tl.int64)
    high = _key(largest).to(tl.int64)
    if KIND == BY_CLOSENESS:  # minus a distance
        high = high * 0
    while low < high:
        pivot = (low + ((high - low + 1) >> 1)).to(tl.int32)
        weight, above, below = _split(
            logits, vocab, largest, inverse, cut, tie, centre, pivot, KIND, BLOCK
        )
        enough = weight >= target
        low = tl.where(enough, above.to(tl.int64), low)
        high = tl.where(enough, high, tl.maximum(below.to(tl.int64), low))
    return low.to(tl.int32)


@triton.jit
def _sums(logits, vocab, largest, inverse, cut, tie, BLOCK: tl.constexpr):
    """The mass of the kept tokens, and the mean of their scaled logits, weighted by mass."""
    total = tl.zeros([BLOCK], tl.int64)
    moment = tl.zeros([BLOCK], tl.float64)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value = _load(logits, token, vocab)
        scaled = (value - largest) * inverse
        mass = tl.where(_kept(token, _key(value), cut, tie), _mass(scaled), 0)
        total += mass
        moment += mass.to(tl.float64) * tl.where(mass > 0, scaled, 0.0)
    whole = tl.sum(total, axis=0)
    return whole, (tl.sum(moment, axis=0) / whole.to(tl.float64)).to(tl.float32)


@triton.jit
def _share(total, part):
    """`part` of `total`, rounded up, at least 1."""
    exact = total.to(tl.float64) * part
    whole = exact.to(tl.int64)
    whole += (whole.to(tl.float64) < exact).to(tl.int64)
    return tl.minimum(tl.maximum(whole, 1), total)


@triton.jit
def _first_tie(logits, vocab, largest, inverse, before, cut, target, BLOCK: tl.constexpr):
    """Of the tokens equal to `cut` only as many are kept as `target` needs, those with the highest
    ids: the id from which on they are. `before` is the cut that is already in force."""
    heavier = tl.zeros([BLOCK], tl.int64)
    equal = tl.zeros([BLOCK], tl.int64)
    shared = tl.zeros([BLOCK], tl.int64)
    for start in range(0, vocab, BLOCK):
        value = _load(logits, start + tl.arange(0, BLOCK), vocab)
        key = _key(value)
        mass = _mass((value - largest) * inverse)
        heavier += tl.where(key > cut, mass, 0)
        shared += tl.where(key == cut, mass, 0)
        equal += (key == cut).to(tl.int64)
    ties = tl.sum(equal, axis=0)
    each = tl.maximum(tl.sum(shared, axis=0) // tl.maximum(ties, 1), 1)
    dropped = ties - (target - tl.sum(heavier, axis=0) + each - 1) // each
    first = tl.full([], 0, tl.int32)
    if (dropped > 0) & (cut > before):
        seen = tl.full([], 0, tl.int64)
        for start in range(0, vocab, BLOCK):
            token = start + tl.arange(0, BLOCK)
            value = _load(logits, token, vocab)
            tied = (_key(value) == cut).to(tl.int64)
            count = tl.sum(tied, axis=0)
            if (seen <= dropped) & (seen + count > dropped):
                rank = tl.cumsum(tied, axis=0) + seen
                here = (tied > 0) & (rank == dropped + 1)
                first = tl.min(tl.where(here, token, HIGHEST), axis=0)
            seen += count
    return first


@triton.jit
def _filters(logits, vocab, largest, inverse, k, p, typical, BLOCK: tl.constexpr):
    """(cut, tie, centre, near): a token is kept above the cut and nearer to the centre."""
    cut = tl.full([], LOWEST, tl.int32)
    tie = tl.full([], 0, tl.int32)
    near = tl.full([], LOWEST, tl.int32)
    centre = tl.full([], 0.0, tl.float32)
    if (k > 0) & (k < vocab):
        cut = _search(
            logits, vocab, largest, inverse, cut, tie, centre, k.to(tl.int64), BY_COUNT, BLOCK
        )
    if p < 1.0:
        total, _ = _sums(logits, vocab, largest, inverse, cut, tie, BLOCK)
        target = _share(total, p)
        edge = _search(logits, vocab, largest, inverse, cut, tie, centre, target, BY_MASS, BLOCK)
        tie = _first_tie(logits, vocab, largest, inverse, LOWEST, edge, target, BLOCK)
        cut = edge
    if typical < 1.0:
        total, centre = _sums(logits, vocab, largest, inverse, cut, tie, BLOCK)
        target = _share(total, typical)
        near = _search(
            logits, vocab, largest, inverse, cut, tie, centre, target, BY_CLOSENESS, BLOCK
        )
    return cut, tie, centre, near


@triton.jit
def _survivors(logits, token, vocab, largest, inverse, cut, tie, centre, near):
    """Scaled logits and masses; -inf and 0 for what the filters dropped."""
    value = _load(logits, token, vocab)
    scaled = (value - largest) * inverse
    kept = _kept(token, _key(value), cut, tie) & (_key(-tl.abs(scaled - centre)) >= near)
    return tl.where(kept, scaled, float("-inf")), tl.where(kept, _mass(scaled), 0)


@triton.jit
def _likeliest(logits, vocab, largest, inverse, cut, tie, centre, near, BLOCK: tl.constexpr):
    """The first of the likeliest tokens that were kept, and the mass of all that were."""
    total = tl.zeros([BLOCK], tl.int64)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    at = tl.full([BLOCK], HIGHEST, tl.int32)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value, mass = _survivors(logits, token, vocab, largest, inverse, cut, tie, centre, near)
        total += mass
        at = tl.where(value > best, token, at)
        best = tl.maximum(best, value)
    top = tl.max(best, axis=0)
    return tl.min(tl.where(best == top, at, HIGHEST), axis=0), tl.sum(total, axis=0)


@triton.jit
def _noise(seed, position, word):
    """Gumbel noise number `word` of (seed, position); see reference.philox."""
    block = (word >> 2).to(tl.uint32)
    zero = block * 0
    low = zero + (position & 0xFFFFFFFF).to(tl.uint32)
    high = zero + ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    first, second, third, fourth = tl.philox(seed, low, high, block, zero)
    lane = word & 3
    bits = tl.where(
        lane < 2, tl.where(lane == 0, first, second), tl.where(lane == 2, third, fourth)
    )
    uniform = (bits.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2^-32
    return -tl.log(-tl.log(uniform))


@triton.jit
def _draw(
    logits,
    vocab,
    largest,
    inverse,
    cut,
    tie,
    centre,
    near,
    seed,
    position,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Gumbel-max over groups of ids, then over the ids of that group; see reference.sample."""
    groups = tl.minimum(vocab, DRAW_GROUPS)
    width = (vocab + groups - 1) // groups
    member = tl.arange(0, WIDTH)
    best = tl.full([], float("-inf"), tl.float64)
    drawn = tl.full([], 0, tl.int32)
    for start in range(0, groups, TILE):
        group = start + tl.arange(0, TILE)
        token = group[:, None] * width + member[None, :]
        token = tl.where(member[None, :] < width, token, vocab)
        _, masses = _survivors(logits, token, vocab, largest, inverse, cut, tie, centre, near)
        mass = tl.where(group < groups, tl.sum(masses, axis=1), 0)
        log_mass = tl.log(tl.maximum(mass, 1).to(tl.float64))
        score = tl.where(mass > 0, log_mass + _noise(seed, position, group), float("-inf"))
        top = tl.max(score, axis=0)
        at = tl.min(tl.where(score == top, group, HIGHEST), axis=0)
        drawn = tl.where(top > best, at, drawn)
        best = tl.maximum(best, top)
    token = tl.where(member < width, drawn * width + member, vocab)
    scaled, _ = _survivors(logits, token, vocab, largest, inverse, cut, tie, centre, near)
    score = scaled.to(tl.float64) + _noise(seed, position, groups + member)
    return tl.min(tl.where(score == tl.max(score, axis=0), token, HIGHEST), axis=0)


@triton.jit(do_not_specialize_on_alignment=list(PARAMETERS))
def sample_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    typical_ptr,
    draws_ptr,
    seed_ptr,
    position_ptr,
    ids_ptr,
    logprobs_ptr,
    vocab,
    stride,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * stride
    largest = _largest(logits, vocab, BLOCK)
    chosen = tl.full([], 0, tl.int32)
    logprob = tl.full([], float("nan"), tl.float32)
    if largest == largest:
        inverse = 1.0 / tl.load(temperature_ptr + row)
        k, p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
        typical = tl.load(typical_ptr + row)
        cut, tie, centre, near = _filters(logits, vocab, largest, inverse, k, p, typical, BLOCK)
        chosen, total = _likeliest(logits, vocab, largest, inverse, cut, tie, centre, near, BLOCK)
        if tl.load(draws_ptr + row) != 0:
            seed, position = tl.load(seed_ptr + row), tl.load(position_ptr + row)
            chosen = _draw(
                logits, vocab, largest, inverse, cut, tie, centre, near, seed, position, TILE, WIDTH
            )
        value = tl.load(logits + chosen).to(tl.float32)
        logprob = (value - largest) * inverse - tl.log(total.to(tl.float32) / ONE)
    tl.store(ids_ptr + row, chosen.to(tl.int64))
    tl.store(logprobs_ptr + row, logprob)


def sample(logits: torch.Tensor, params: SampleParams) -> tuple[torch.Tensor, torch.Tensor]:
    """See reference.sample. A vocabulary of up to 2^19."""
    check(logits, params)
    rows, vocab = logits.shape
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        sample_kernel[(rows,)](
            logits,
            params.temperature,
            params.top_k,
            params.top_p,
            params.typical_p,
            params.draws,
            params.seed,
            params.position,
            ids,
            logprobs,
            vocab,
            logits.stride(0),
            **_constants(vocab),
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # a key must have the same bits in every pass
        )
    return ids, logprobs


def _constants(vocab: int) -> dict[str, int]:
    """TILE groups of up to WIDTH ids are looked at together in a draw."""
    width = triton.next_power_of_2(group_shape(vocab)[1])
    tile = max(1, min(GROUPS, BLOCK // width))
    return {"BLOCK": BLOCK, "TILE": tile, "WIDTH": width}


COMPILE_CASES = [
    CompileCase(
        sample_kernel,
        f"logits {dtype}",
        {
            "logits_ptr": f"*{dtype}",
            **PARAMETERS,
            "ids_ptr": "*i64",
            "logprobs_ptr": "*fp32",
            "vocab": "i32",
            "stride": "i32",
        },
        _constants(65024),  # the same as for the 50,304 of RW
        num_warps=NUM_WARPS,
        aligned=("vocab", "stride"),
        options={"enable_fp_fusion": False},
    )
    for dtype in ("bf16", "fp16", "fp32")
]
