"""The published Falcons as FalconSpecs, so that a plan needs neither network nor files."""

from dataclasses import replace

from tiercel.model.spec import Block, FalconSpec, Position, QkvLayout

_SEVEN_B = FalconSpec(
    vocab_size=65024,
    hidden_size=4544,
    num_layers=32,
    num_heads=71,
    num_kv_heads=1,
    head_dim=64,
    ffn_size=18176,
    layer_norm_eps=1e-5,
    position=Position.ROTARY,
    qkv=QkvLayout.MULTI_QUERY,
    block=Block.PARALLEL_ONE_NORM,
    bias=False,
    tied=True,
    rope_theta=10000.0,
    rope_scaling=None,
    max_positions=2048,
    dtype="bfloat16",
    bos_token_id=11,
    eos_token_ids=(11,),
)
_FORTY_B = replace(
    _SEVEN_B,
    hidden_size=8192,
    num_layers=60,
    num_heads=128,
    num_kv_heads=8,
    ffn_size=32768,
    qkv=QkvLayout.GROUPED,
    block=Block.PARALLEL_TWO_NORM,
)
# 36 layers give the 7.5 billion parameters that its card states.
_RW_7B = replace(
    _SEVEN_B,
    hidden_size=4096,
    num_layers=36,
    num_heads=64,
    num_kv_heads=64,
    ffn_size=16384,
    position=Position.ALIBI,
    qkv=QkvLayout.INTERLEAVED,
    block=Block.SEQUENTIAL,
    bias=True,
)

PUBLISHED = {
    "falcon-rw-1b": replace(
        _RW_7B,
        vocab_size=50304,
        hidden_size=2048,
        num_layers=24,
        num_heads=32,
        num_kv_heads=32,
        ffn_size=8192,
    ),
    "falcon-rw-7b": _RW_7B,
    "falcon-7b": _SEVEN_B,
    "falcon-11b": replace(
        _FORTY_B,
        hidden_size=4096,
        num_heads=32,
        head_dim=128,
        ffn_size=16384,
        block=Block.PARALLEL_ONE_NORM,
        tied=False,
        rope_theta=500042.0,
        max_positions=8192,
    ),
    "falcon-40b": _FORTY_B,
    "falcon-180b": replace(
        _FORTY_B,
        hidden_size=14848,
        num_layers=80,
        num_heads=232,
        ffn_size=59392,
        tied=False,
    ),
}

# GB that users were told one card needs, by the method: from the model cards and the launch posts.
STATED_GB = {
    ("falcon-7b", None): 15,
    ("falcon-40b", None): 90,
    ("falcon-40b", "bitsandbytes"): 45,
    ("falcon-40b", "bitsandbytes-nf4"): 27,
}


def published(name: str) -> tuple[str, FalconSpec] | None:
    """The Falcon of this name, as `7b`, `falcon-7b`, `tiiuae/falcon-7b` or `falcon-7b-instruct`."""
    plain = name.lower().removeprefix("tiiuae/").replace("falcon2-", "falcon-")
    plain = plain.removesuffix("-instruct").removesuffix("-chat").removesuffix("-vlm")
    plain = plain if plain.startswith("falcon-") else f"falcon-{plain}"
    return (plain, PUBLISHED[plain]) if plain in PUBLISHED else None
