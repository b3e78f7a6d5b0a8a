"""config.json and generation_config.json, in any dialect of Falcon, to a FalconSpec.

What is not understood is refused, naming file, field and value; remote code is never looked at.
The semantics are those of transformers' modeling_falcon.py. Torch-free.
"""

import itertools
from pathlib import Path
from typing import Any

from tiercel.errors import ConfigError, WeightsError
from tiercel.foreign_files import BadFile, read_object, shown
from tiercel.model.fields import Fields
from tiercel.model.quantization_config import stored_quantization
from tiercel.model.safetensors_file import read_header, weight_files
from tiercel.model.spec import Block, FalconSpec, Position, QkvLayout, RopeScaling

MODEL_TYPES = ("falcon", "RefinedWeb", "RefinedWebModel")
DTYPES = ("float32", "bfloat16", "float16")
ROPE_KINDS = ("linear", "dynamic")
DEFAULT_POSITIONS = 2048  # what every Falcon was trained with unless its config.json says otherwise
MAX_POSITIONS = 1 << 20
TOKENIZER_LIMIT_BYTES = 64 * 1024 * 1024


def load_spec(
    folder: Path, *, rope_scaling: str | None = None, rope_factor: float | None = None
) -> FalconSpec:
    """Return the architecture that `folder`/config.json describes.

    `rope_scaling` ("linear" or "dynamic") and `rope_factor` replace the file's RoPE scaling; a
    factor alone means linear, a kind alone means factor 1, as in TGI. A scaled model's
    `max_positions` is its original context times the factor, rounded down.

    Raises ConfigError, one line that names the file, the field, its value and what is allowed.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is not a folder; give the folder that holds config.json")
    spec = read_spec(folder / "config.json", rope_scaling=rope_scaling, rope_factor=rope_factor)
    _check_tokenizer(folder, spec.vocab_size)
    return spec


def read_spec(
    path: Path, *, rope_scaling: str | None = None, rope_factor: float | None = None
) -> FalconSpec:
    """Return the architecture of one config.json, without a look at the model's other files.

    But for generation_config.json beside it, and the weights' dtype where the file names none.
    Otherwise as `load_spec`.
    """
    folder, fields = path.parent, Fields.read(path)
    dialect = fields.text("model_type", allowed=MODEL_TYPES)
    _refuse_unsupported(fields)

    hidden_size, num_heads, head_dim = _heads(fields)
    qkv, num_kv_heads, block = _architecture(fields, dialect, num_heads)
    position = _position(fields, head_dim)
    rope_theta, scaling, max_positions = _rope(fields, position, rope_scaling, rope_factor)
    vocab_size = fields.integer("vocab_size", low=1, high=1 << 22)
    bos, eos = _special_tokens(folder, fields, vocab_size)
    spec = FalconSpec(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=fields.integer("num_hidden_layers", "n_layer", low=1, high=1 << 10),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        ffn_size=_ffn_size(fields, hidden_size),
        layer_norm_eps=fields.number("layer_norm_epsilon", low=0.0, high=1.0, default=1e-5),
        position=position,
        qkv=qkv,
        block=block,
        bias=fields.flag("bias", default=False),
        tied=fields.flag("tie_word_embeddings", default=True),
        rope_theta=rope_theta,
        rope_scaling=scaling,
        max_positions=max_positions,
        dtype=_dtype(folder, fields),
        bos_token_id=bos,
        eos_token_ids=eos,
        quantization=stored_quantization(fields),
    )
    fields.refuse_unknown()
    return spec


def _heads(fields: Fields) -> tuple[int, int, int]:
    """(hidden size, query heads, numbers per head)."""
    hidden_size = fields.integer("hidden_size", "n_embed", low=1, high=1 << 17)
    num_heads = fields.integer("num_attention_heads", "n_head", low=1, high=1 << 12)
    if hidden_size % num_heads:
        raise fields.error(
            "num_attention_heads", num_heads, f"it must divide hidden_size, which is {hidden_size}"
        )
    head_dim = hidden_size // num_heads
    fields.only("head_dim", head_dim, why=f"hidden_size / num_attention_heads is {head_dim}")
    return hidden_size, num_heads, head_dim


def linear_weights(spec: FalconSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape [out, in] of every linear layer's weight but the head's."""
    hidden, heads_size = spec.hidden_size, spec.num_heads * spec.head_dim
    linears = {
        "self_attention.query_key_value": (spec.qkv_size, hidden),
        "self_attention.dense": (hidden, heads_size),
        "mlp.dense_h_to_4h": (spec.ffn_size, hidden),
        "mlp.dense_4h_to_h": (hidden, spec.ffn_size),
    }
    return {
        f"h.{layer}.{name}.weight": shape
        for layer in range(spec.num_layers)
        for name, shape in linears.items()
    }


def expected_tensors(spec: FalconSpec) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of the checkpoint, without the prefix `transformer.`.

    Linear weights are [out, in]; `lm_head.weight` is there only when it is not tied.
    """
    hidden = spec.hidden_size
    norms = {
        Block.SEQUENTIAL: ("input_layernorm", "post_attention_layernorm"),
        Block.PARALLEL_ONE_NORM: ("input_layernorm",),
        Block.PARALLEL_TWO_NORM: ("ln_attn", "ln_mlp"),
    }[spec.block]
    tensors: dict[str, tuple[int, ...]] = {"word_embeddings.weight": (spec.vocab_size, hidden)}
    linears = iter(linear_weights(spec).items())
    for layer in range(spec.num_layers):
        for name, shape in itertools.islice(linears, 4):
            tensors[name] = shape
            if spec.bias:
                tensors[name.removesuffix("weight") + "bias"] = shape[:1]
        for name in norms:
            tensors[f"h.{layer}.{name}.weight"] = (hidden,)
            tensors[f"h.{layer}.{name}.bias"] = (hidden,)
    tensors["ln_f.weight"] = (hidden,)
    tensors["ln_f.bias"] = (hidden,)
    if not spec.tied:
        tensors["lm_head.weight"] = (spec.vocab_size, hidden)
    return tensors


def _refuse_unsupported(fields: Fields) -> None:
    """Refuse fields that change the computation in a way this implementation does not have."""
    fields.only(
        "compression_config", {}, why="compressed checkpoints are not supported; use the original"
    )
    fields.only("apply_residual_connection_post_layernorm", False, why="only false is supported")
    fields.only("activation", "gelu", why="only 'gelu' is supported")
    fields.only("hidden_act", "gelu", why="only 'gelu' is supported")
    fields.only("is_encoder_decoder", False, why="Falcon is a decoder; it must be false")
    fields.only("add_cross_attention", False, why="Falcon has no cross attention; it must be false")
    fields.only("pruned_heads", {}, why="pruned heads are not supported; it must be {}")
    fields.only("per_layer_config", {}, why="layers that differ are not supported; it must be {}")
    fields.only("partial_rotary_factor", 1.0, 1, why="Falcon rotates whole heads; it must be 1.0")


def _architecture(fields: Fields, dialect: str, num_heads: int) -> tuple[QkvLayout, int, Block]:
    """Return the order of the fused QKV rows, the number of KV heads and the kind of block.

    The defaults are those of each dialect's own configuration class: `RefinedWeb` is the 40B code,
    `RefinedWebModel` the 7B and RW code, where a missing flag was false. A config that says
    `RefinedWeb` and cannot be the 40B's is read as the others.
    """
    # What the 40B never was says that it is not the 40B's layout, whatever the dialect.
    other = fields.value("alibi")[1] is True or fields.value("parallel_attn")[1] is False
    new = fields.flag("new_decoder_architecture", default=dialect == "RefinedWeb" and not other)
    multi_query = fields.flag("multi_query", default=dialect == "falcon")
    parallel = fields.flag("parallel_attn", default=new or dialect == "falcon")
    if new:
        kv_heads = fields.integer(
            "num_kv_heads", "n_head_kv", low=1, high=num_heads, default=num_heads
        )
        if num_heads % kv_heads:
            raise fields.error(
                "num_kv_heads", kv_heads, f"it must divide num_attention_heads, {num_heads}"
            )
        if not parallel:
            raise fields.error(
                "parallel_attn", False, "with new_decoder_architecture it must be true"
            )
        norms = fields.integer("num_ln_in_parallel_attn", low=1, high=2, default=2)
        block = Block.PARALLEL_ONE_NORM if norms == 1 else Block.PARALLEL_TWO_NORM
        return QkvLayout.GROUPED, kv_heads, block
    if not parallel:
        fields.ignore("num_ln_in_parallel_attn")
    else:
        fields.only(
            "num_ln_in_parallel_attn",
            1,
            why="without new_decoder_architecture it must be 1 or null",
        )
    block = Block.PARALLEL_ONE_NORM if parallel else Block.SEQUENTIAL
    if multi_query:
        # Re-saved configs say num_kv_heads = num_attention_heads; the weights have one KV head.
        fields.ignore("num_kv_heads", "n_head_kv")
        return QkvLayout.MULTI_QUERY, 1, block
    why = f"without multi_query it must be num_attention_heads, {num_heads}"
    fields.only("num_kv_heads", num_heads, why=why)
    fields.only("n_head_kv", num_heads, why=why)
    return QkvLayout.INTERLEAVED, num_heads, block


def _position(fields: Fields, head_dim: int) -> Position:
    alibi = fields.flag("alibi", default=False)
    fields.only(
        "rotary", not alibi, why=f"alibi is {str(alibi).lower()}, so it must be the opposite"
    )
    if not alibi and head_dim % 2:
        raise fields.error(
            "hidden_size",
            fields.value("hidden_size", "n_embed")[1],
            f"rotary positions need an even head size, and it gives {head_dim}",
        )
    return Position.ALIBI if alibi else Position.ROTARY


def _ffn_size(fields: Fields, hidden_size: int) -> int:
    size = fields.integer("ffn_hidden_size", low=1, high=1 << 20, default=4 * hidden_size)
    name, factor = fields.value("ff_factor")  # in Falcon-11B beside ffn_hidden_size
    if factor is not None and factor != size / hidden_size:
        raise fields.error(name, factor, f"ffn_hidden_size / hidden_size is {size / hidden_size:g}")
    return size


def _rope(
    fields: Fields, position: Position, kind: str | None, factor: float | None
) -> tuple[float, RopeScaling | None, int]:
    """Return theta, the scaling and the context length in tokens."""
    theta = fields.number("rope_theta", low=1.0, high=1e12, default=0.0)
    scaling, said = None, ""
    for name in ("rope_parameters", "rope_scaling"):  # transformers 5 and 4
        inner = fields.nested(name)
        if inner is None:
            continue
        inner_theta, inner_scaling = _rope_object(inner)
        if inner_theta and theta and inner_theta != theta:
            must = f"rope_theta is {theta:g} elsewhere; remove the wrong one"
            raise inner.error("rope_theta", inner_theta, must)
        if said and inner_scaling != scaling:
            must = f"{said} scales differently; remove the wrong one"
            raise fields.error(name, fields.value(name)[1], must)
        theta, scaling, said = inner_theta or theta, inner_scaling, name
    positions = fields.integer(
        "max_position_embeddings", low=2, high=MAX_POSITIONS, default=DEFAULT_POSITIONS
    )
    if kind is not None or factor is not None:
        scaling = _rope_flags(position, kind, factor)
    theta = theta or 10000.0
    if position is Position.ALIBI or scaling is None or scaling[1] == 1.0:
        return theta, None, positions
    stretched = int(positions * scaling[1])
    if stretched > MAX_POSITIONS:
        raise ConfigError(
            f"{fields.path}: max_position_embeddings {positions} times the RoPE factor "
            f"{scaling[1]:g} is more than {MAX_POSITIONS} positions; use a smaller factor"
        )
    return theta, RopeScaling(scaling[0], scaling[1], positions), stretched


def _rope_object(inner: Fields) -> tuple[float, tuple[str, float] | None]:
    """Return theta (0 when absent) and (kind, factor) of a rope_scaling or rope_parameters."""
    theta = inner.number("rope_theta", low=1.0, high=1e12, default=0.0)
    kind = inner.text("rope_type", "type", allowed=("default", *ROPE_KINDS), default="default")
    factor = inner.number("factor", low=1.0, high=1024.0, default=0.0)
    inner.only("partial_rotary_factor", 1.0, 1, why="Falcon rotates whole heads; it must be 1.0")
    inner.refuse_unknown()
    if kind == "default":
        if factor > 1.0:
            raise inner.error("factor", factor, "rope_type must say linear or dynamic with it")
        return theta, None
    if not factor:
        raise inner.missing("factor", f"RoPE scaling of type {kind} needs it")
    return theta, (kind, factor)


def _rope_flags(position: Position, kind: str | None, factor: float | None) -> tuple[str, float]:
    if position is Position.ALIBI:
        raise ConfigError(
            "--rope-scaling and --rope-factor: this model has ALiBi positions; leave both out"
        )
    if kind is not None and kind not in ROPE_KINDS:
        raise ConfigError(f"--rope-scaling is {shown(kind)}; it must be linear or dynamic")
    if factor is not None and not 1.0 <= factor <= 1024.0:
        raise ConfigError(f"--rope-factor is {factor}; it must be a number from 1 to 1024")
    return kind or "linear", 1.0 if factor is None else float(factor)


def _special_tokens(
    folder: Path, config: Fields, vocab_size: int
) -> tuple[int | None, tuple[int, ...]]:
    """Return bos and the eos ids; generation_config.json wins, as in transformers."""
    sources = [config]
    generation = folder / "generation_config.json"
    if generation.exists():
        sources.insert(0, Fields.read(generation))
    bos = [token for source in sources for token in _token_ids(source, "bos_token_id", vocab_size)]
    eos = [ids for source in sources if (ids := _token_ids(source, "eos_token_id", vocab_size))]
    if not eos:
        raise config.missing(
            "eos_token_id", "without it no text ever ends; add it (Falcon's <|endoftext|> is 11)"
        )
    return bos[0] if bos else None, eos[0]


def _token_ids(source: Fields, name: str, vocab_size: int) -> tuple[int, ...]:
    _, value = source.value(name)
    ids: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise source.error(
                name, value, f"it must be a token id below vocab_size, which is {vocab_size}"
            )
    return tuple(dict.fromkeys(ids))


def _dtype(folder: Path, fields: Fields) -> str:
    """Return the dtype that config.json names or, if it names none, that of the largest tensor."""
    name, value = fields.value("dtype", "torch_dtype")
    if value is not None and value != "auto":
        plain = value.removeprefix("torch.") if isinstance(value, str) else value
        if plain not in DTYPES:
            raise fields.error(name, value, f"it must be one of {', '.join(DTYPES)}")
        return str(plain)
    try:
        entries = [
            entry
            for entry in read_header(weight_files(folder)[0])
            if entry.dtype not in ("I8", "U8")  # quantized: the others say what is computed in
        ]
        stored = max(entries, key=lambda entry: entry.nbytes).dtype
    except (WeightsError, ValueError):
        return "float32"  # opening the checkpoint will say what is wrong with the file
    return {"BF16": "bfloat16", "F16": "float16"}.get(stored, "float32")


def _check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Refuse a tokenizer that can give ids for which the model has no embedding."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    try:
        tokenizer = read_object(path, TOKENIZER_LIMIT_BYTES)
        tokens = dict(tokenizer["model"]["vocab"])
        tokens.update({token["content"]: token["id"] for token in tokenizer["added_tokens"]})
        token, largest = max(tokens.items(), key=lambda item: int(item[1]))
    except BadFile as bad:
        raise ConfigError(f"{path}: {bad}; copy the model's tokenizer.json again") from bad
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: has no token ids that can be read; copy the model's tokenizer.json again"
        ) from error
    if largest >= vocab_size:
        raise ConfigError(
            f"{path}: token {shown(token)} has id {largest}, but vocab_size in config.json is "
            f"{vocab_size}; use the tokenizer that belongs to the model"
        )
