"""config.json in every dialect to a FalconSpec. What is refused is in test_corrupt.py."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import FalconConfig, GenerationConfig

import tiercel
from support.checkpoints import DIALECTS, SHAPES, VARIANTS, load_reference, make_checkpoint
from tiercel.errors import ConfigError
from tiercel.model.config import expected_tensors, load_spec
from tiercel.model.spec import Block, FalconSpec, Position, QkvLayout, RopeScaling


def spec_of(folder: Path, **fields: Any) -> FalconSpec:
    """Write config.json with the fields of Falcon-7B, changed by `fields`; None removes one."""
    config: dict[str, Any] = {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "num_hidden_layers": 32,
        "vocab_size": 65024,
        "eos_token_id": 11,
        "torch_dtype": "bfloat16",
    }
    config = {key: value for key, value in (config | fields).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_spec(folder)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_in_every_dialect(variant: str, dialect: str, tmp_path: Path) -> None:
    spec = load_spec(make_checkpoint(tmp_path, variant, dialect=dialect))
    reference = load_reference(tmp_path)
    shape, config = SHAPES[variant], reference.config
    attention = reference.transformer.h[0].self_attention
    assert spec.num_heads == config.num_attention_heads
    assert spec.num_kv_heads == attention.num_kv_heads
    assert spec.head_dim == config.head_dim
    assert spec.ffn_size == config.ffn_hidden_size
    # transformers 5 moved theta into rope_parameters
    parameters = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    assert spec.rope_theta == parameters["rope_theta"]
    assert spec.max_positions == config.max_position_embeddings
    assert spec.position is (Position.ALIBI if config.alibi else Position.ROTARY)
    assert spec.tied is shape.tied
    assert spec.bias is config.bias
    tensors = {
        name.removeprefix("transformer."): tuple(tensor.shape)
        for name, tensor in reference.state_dict().items()
        if not (shape.tied and name == "lm_head.weight")
    }
    assert expected_tensors(spec) == tensors


@pytest.mark.parametrize(
    ("variant", "qkv", "block"),
    [
        ("7b", QkvLayout.MULTI_QUERY, Block.PARALLEL_ONE_NORM),
        ("7b-resaved", QkvLayout.MULTI_QUERY, Block.PARALLEL_ONE_NORM),
        ("40b", QkvLayout.GROUPED, Block.PARALLEL_TWO_NORM),
        ("180b", QkvLayout.GROUPED, Block.PARALLEL_TWO_NORM),
        ("11b", QkvLayout.GROUPED, Block.PARALLEL_ONE_NORM),
        ("rw-1b", QkvLayout.INTERLEAVED, Block.SEQUENTIAL),
    ],
)
def test_layout_and_block(variant: str, qkv: QkvLayout, block: Block, tmp_path: Path) -> None:
    spec = load_spec(make_checkpoint(tmp_path, variant))
    assert (spec.qkv, spec.block) == (qkv, block)


def test_everything_transformers_writes_is_understood(tmp_path: Path) -> None:
    """The whole dictionary, with the generation defaults that old versions put into config.json."""
    fields = FalconConfig().to_dict() | GenerationConfig().to_dict()
    if hasattr(GenerationConfig, "_get_default_generation_params"):  # transformers 5
        fields |= GenerationConfig._get_default_generation_params()
    fields |= {"auto_map": {"AutoModel": "evil.Evil"}, "architectures": ["FalconForCausalLM"]}
    fields |= {"num_kv_heads": 71, "eos_token_id": 11, "bos_token_id": 11, "dtype": "bfloat16"}
    fields.pop("_from_model_config", None)
    spec = spec_of(tmp_path, torch_dtype=None, **fields)
    assert (spec.num_kv_heads, spec.head_dim, spec.max_positions) == (1, 64, 2048)
    assert spec.qkv_size == 73 * 64


def test_dialect_defaults(tmp_path: Path) -> None:
    """What the remote code of the first releases took for a missing flag."""
    keys = {"n_layer": 60, "n_head": 128, "n_head_kv": 8, "hidden_size": 8192}
    keys |= {"num_attention_heads": None, "num_hidden_layers": None}
    large = spec_of(tmp_path, model_type="RefinedWeb", **keys)
    assert (large.qkv, large.num_kv_heads) == (QkvLayout.GROUPED, 8)
    assert large.block is Block.PARALLEL_TWO_NORM
    small = spec_of(tmp_path, model_type="RefinedWebModel")
    assert (small.qkv, small.block) == (QkvLayout.INTERLEAVED, Block.SEQUENTIAL)
    rw = {"alibi": True, "parallel_attn": False, "bias": True, "multi_query": False}
    for said in (rw, {"parallel_attn": False, "multi_query": False}):
        other = spec_of(tmp_path, model_type="RefinedWeb", **said)
        assert (other.qkv, other.block) == (QkvLayout.INTERLEAVED, Block.SEQUENTIAL)
    new_names = spec_of(tmp_path, n_embed=4544, hidden_size=None)
    assert new_names.hidden_size == 4544
    assert new_names.block is Block.PARALLEL_ONE_NORM


def test_null_fields_count_as_absent(tmp_path: Path) -> None:
    nothing = {"rope_scaling": None, "num_ln_in_parallel_attn": None, "sliding_window": None}
    path = tmp_path / "config.json"
    spec_of(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | nothing), encoding="utf-8")
    assert load_spec(tmp_path) == spec_of(tmp_path)


@pytest.mark.parametrize(
    ("fields", "theta", "scaling", "positions"),
    [
        ({}, 10000.0, None, 2048),
        ({"rope_theta": 500042.0, "max_position_embeddings": 8192}, 500042.0, None, 8192),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None, 2048),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 1e4, ("linear", 4.0), 8192),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 1e4, ("dynamic", 2.0), 4096),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 1.5, "rope_theta": 2e4}},
            2e4,
            ("linear", 1.5),
            3072,
        ),
        ({"rope_scaling": {"type": "linear", "factor": 1.0}}, 1e4, None, 2048),
        ({"alibi": True, "rope_scaling": {"type": "linear", "factor": 4.0}}, 1e4, None, 2048),
    ],
)
def test_rope(
    fields: dict[str, Any],
    theta: float,
    scaling: tuple[str, float] | None,
    positions: int,
    tmp_path: Path,
) -> None:
    spec = spec_of(tmp_path, **fields)
    assert spec.rope_theta == theta
    assert spec.max_positions == positions
    assert spec.rope_scaling == (RopeScaling(*scaling, 2048) if scaling else None)


def test_rope_flags_replace_the_file(tmp_path: Path) -> None:
    spec_of(tmp_path, rope_scaling={"type": "linear", "factor": 4.0})
    dynamic = load_spec(tmp_path, rope_scaling="dynamic", rope_factor=2.0)
    assert dynamic.rope_scaling == RopeScaling("dynamic", 2.0, 2048)
    assert dynamic.max_positions == 4096
    factor_alone = load_spec(tmp_path, rope_factor=3.0)
    assert factor_alone.rope_scaling == RopeScaling("linear", 3.0, 2048)
    kind_alone = load_spec(tmp_path, rope_scaling="dynamic")
    assert (kind_alone.rope_scaling, kind_alone.max_positions) == (None, 2048)


@pytest.mark.parametrize(
    ("scaling", "factor", "alibi", "says"),
    [
        ("yarn", None, False, "--rope-scaling"),
        ("linear", 0.5, False, "--rope-factor"),
        ("linear", float("nan"), False, "--rope-factor"),
        ("linear", 1024.0, False, "1048576"),
        ("linear", 2.0, True, "ALiBi"),
    ],
)
def test_rope_flags_refused(
    scaling: str, factor: float | None, alibi: bool, says: str, tmp_path: Path
) -> None:
    spec_of(tmp_path, alibi=alibi)
    with pytest.raises(ConfigError, match=says):
        load_spec(tmp_path, rope_scaling=scaling, rope_factor=factor)


def test_generation_config_wins_for_the_end_of_text(tmp_path: Path) -> None:
    generation = tmp_path / "generation_config.json"
    generation.write_text('{"eos_token_id": [11, 7, 11], "bos_token_id": 1, "made_up": {}}')
    spec = spec_of(tmp_path, eos_token_id=3, bos_token_id=2)
    assert (spec.eos_token_ids, spec.bos_token_id) == ((11, 7), 1)
    generation.write_text("{}")
    spec = spec_of(tmp_path, eos_token_id=3, bos_token_id=2)
    assert (spec.eos_token_ids, spec.bos_token_id) == ((3,), 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_comes_from_the_weights_if_config_says_none(dtype: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b", dtype=dtype, shards=2, extra={"torch_dtype": None})
    assert load_spec(tmp_path).dtype == dtype
    assert spec_of(tmp_path, torch_dtype="torch.float16").dtype == "float16"


def test_no_torch_is_imported(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "11b", extra={"torch_dtype": None})
    code = (
        "import sys; from pathlib import Path; from tiercel.model.config import load_spec;"
        f"load_spec(Path({str(tmp_path)!r})); assert 'torch' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(Path(tiercel.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
