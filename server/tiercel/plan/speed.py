"""The bound of a decode step: what its bytes and its arithmetic take at a card's speed.

No server reaches it; good ones come to 0.65 to 0.85 of it with 16-bit weights.
"""

from tiercel.model.spec import FalconSpec
from tiercel.plan.cards import Card
from tiercel.plan.sizes import RankShape, Storage, head_bytes, kv_bytes_per_token, linear_bytes


def decode_ms(
    spec: FalconSpec, storage: Storage, card: Card, rows: int, context: int, num_shard: int = 1
) -> float | None:
    """Least milliseconds of a step of `rows` sequences with `context` tokens each.

    Per rank: reads and arithmetic overlap, the ranks' exchange takes no time. None where the card's
    speed is not known.
    """
    if not card.bandwidth or not card.flops:
        return None
    read = linear_bytes(spec, storage, num_shard) + head_bytes(spec, storage, num_shard)
    read += rows * context * kv_bytes_per_token(spec, storage, num_shard)
    rank = RankShape.of(spec, num_shard, storage)
    block = spec.num_layers * sum(out * width for out, width in rank.linears(spec))
    flop = 2 * rows * (block + rank.vocab * spec.hidden_size)
    flop += 4 * rank.heads * spec.head_dim * spec.num_layers * rows * context
    return max(read / card.bandwidth, flop / card.flops) * 1e3
