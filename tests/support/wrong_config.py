"""Named ways to make a configuration wrong, each with what the error must say."""

import json
import os
from pathlib import Path

from support.checkpoints import write_json
from support.corruption import Break, Corruption


def _edit_json(name: str, **fields: object) -> Break:
    """Set fields of a JSON file; None removes one."""

    def apply(folder: Path) -> None:
        path = folder / name
        values = json.loads(path.read_text(encoding="utf-8")) | fields
        write_json(path, {key: value for key, value in values.items() if value is not None})

    return apply


def _config(**fields: object) -> Break:
    return _edit_json("config.json", **fields)


def _no_eos(folder: Path) -> None:
    _config(eos_token_id=None)(folder)
    _edit_json("generation_config.json", eos_token_id=None)(folder)


def _tokenizer(folder: Path) -> None:
    model = {"vocab": {"a": 0, "b": 511}, "merges": []}
    added = [{"content": "<|new|>", "id": 512}]
    write_json(folder / "tokenizer.json", {"model": model, "added_tokens": added})


def _remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _fifo_config(folder: Path) -> None:
    _remove_config(folder)
    os.mkfifo(folder / "config.json")


def _raw_config(text: str, name: str = "config.json") -> Break:
    def apply(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return apply


CONFIG = "config.json"
NEW = {"new_decoder_architecture": True}
OLD = {"multi_query": False}

CONFIGS: tuple[Corruption, ...] = (
    Corruption("config_missing", _remove_config, (CONFIG, "does not exist")),
    Corruption(
        "generation_config_cut",
        _raw_config("{", "generation_config.json"),
        ("generation_config.json", "not JSON", "copy the model's generation_config.json again"),
    ),
    Corruption("config_fifo", _fifo_config, (CONFIG, "not a regular file")),
    Corruption("config_not_json", _raw_config("{'a': 1}"), (CONFIG, "not JSON")),
    Corruption("config_empty", _raw_config(""), (CONFIG, "not JSON")),
    Corruption("config_a_list", _raw_config("[1]"), (CONFIG, "not a JSON object")),
    Corruption("config_name_twice", _raw_config('{"a": 1, "a": 2}'), (CONFIG, "'a'", "twice")),
    Corruption("type_unknown", _config(model_type="llama"), (CONFIG, "'model_type'", "'llama'")),
    Corruption("type_missing", _config(model_type=None), (CONFIG, "'model_type'", "missing")),
    Corruption("type_a_number", _config(model_type=7), (CONFIG, "'model_type'", "RefinedWeb")),
    Corruption(
        "heads_not_dividing", _config(num_attention_heads=3), ("'num_attention_heads'", "3")
    ),
    Corruption("heads_zero", _config(num_attention_heads=0), ("'num_attention_heads'", "from 1")),
    Corruption("heads_missing", _config(num_attention_heads=None), ("'num_attention_heads'",)),
    Corruption("heads_contradict", _config(n_head=10), ("'n_head'", "10", "num_attention_heads")),
    Corruption("head_size_odd", _config(hidden_size=75), ("'hidden_size'", "even head size", "15")),
    Corruption("head_dim_contradicts", _config(head_dim=64), ("'head_dim'", "64", "16")),
    Corruption("hidden_negative", _config(hidden_size=-80), ("'hidden_size'", "-80")),
    Corruption("hidden_huge", _config(hidden_size=80 * 10**12), ("'hidden_size'", "131072")),
    Corruption("hidden_a_text", _config(hidden_size="80"), ("'hidden_size'", "'80'")),
    Corruption("hidden_a_fraction", _config(hidden_size=80.0), ("'hidden_size'", "80.0")),
    Corruption("hidden_is_true", _config(hidden_size=True), ("'hidden_size'", "True")),
    Corruption("layers_zero", _config(num_hidden_layers=0), ("'num_hidden_layers'", "from 1")),
    Corruption("layers_huge", _config(num_hidden_layers=10**30), ("'num_hidden_layers'", "1024")),
    Corruption("vocabulary_missing", _config(vocab_size=None), ("'vocab_size'", "missing")),
    Corruption("vocabulary_below_tokenizer", _tokenizer, ("tokenizer.json", "<|new|>", "512")),
    Corruption("ffn_negative", _config(ffn_hidden_size=-1), ("'ffn_hidden_size'", "-1")),
    Corruption("ff_factor_contradicts", _config(ff_factor=3), ("'ff_factor'", "4")),
    Corruption(
        "kv_heads_not_dividing", _config(num_kv_heads=2, **NEW), ("'num_kv_heads'", "divide")
    ),
    Corruption("kv_heads_too_many", _config(num_kv_heads=10, **NEW), ("'num_kv_heads'", "1 to 5")),
    Corruption("kv_heads_not_all", _config(num_kv_heads=1, **OLD), ("'num_kv_heads'", "5")),
    Corruption("norms_three", _config(num_ln_in_parallel_attn=3, **NEW), ("'num_ln_in", "1 to 2")),
    Corruption("norms_two_in_old", _config(num_ln_in_parallel_attn=2), ("'num_ln_in", "be 1")),
    Corruption("not_parallel_in_new", _config(parallel_attn=False, **NEW), ("'parallel_attn'",)),
    Corruption("flag_a_text", _config(alibi="false"), ("'alibi'", "true or false")),
    Corruption("epsilon_a_text", _config(layer_norm_epsilon="1e-5"), ("'layer_norm_epsilon'",)),
    Corruption("epsilon_negative", _config(layer_norm_epsilon=-1e-5), ("'layer_norm_epsilon'",)),
    Corruption("theta_zero", _config(rope_theta=0), ("'rope_theta'", "from 1")),
    Corruption("theta_endless", _config(rope_theta=10**400), ("'rope_theta'", "number from")),
    Corruption("rope_a_text", _config(rope_scaling="linear"), ("'rope_scaling'", "an object")),
    Corruption(
        "rope_type_unknown",
        _config(rope_scaling={"type": "yarn"}),
        ("'rope_scaling.type'", "'yarn'"),
    ),
    Corruption(
        "rope_no_factor",
        _config(rope_scaling={"type": "linear"}),
        ("'rope_scaling.factor'", "missing"),
    ),
    Corruption(
        "rope_factor_small",
        _config(rope_parameters={"rope_type": "dynamic", "factor": 0.5}),
        ("'rope_parameters.factor'", "0.5"),
    ),
    Corruption(
        "rope_field_unknown",
        _config(rope_scaling={"type": "linear", "factor": 2.0, "beta_fast": 32}),
        ("'rope_scaling.beta_fast'", "does not know"),
    ),
    Corruption(
        "rope_factor_alone",
        _config(rope_scaling={"factor": 2.0}),
        ("'rope_scaling.factor'", "2.0", "rope_type"),
    ),
    Corruption(
        "rope_factor_of_the_default",
        _config(rope_parameters={"rope_type": "default", "factor": 4.0}),
        ("'rope_parameters.factor'", "4.0", "rope_type"),
    ),
    Corruption(
        "rope_two_factors",
        _config(
            rope_parameters={"rope_type": "linear", "factor": 4.0},
            rope_scaling={"type": "linear", "factor": 2.0},
        ),
        ("'rope_scaling'", "rope_parameters scales differently"),
    ),
    Corruption(
        "rope_scaled_and_not",
        _config(
            rope_parameters={"rope_type": "default"}, rope_scaling={"type": "linear", "factor": 2}
        ),
        ("'rope_scaling'", "rope_parameters scales differently"),
    ),
    Corruption(
        "rope_two_thetas",
        _config(rope_parameters={"rope_theta": 2e4}, rope_scaling={"rope_theta": 3e4}),
        ("'rope_scaling.rope_theta'", "20000"),
    ),
    Corruption(
        "positions_zero", _config(max_position_embeddings=0), ("'max_position_embeddings'",)
    ),
    Corruption(
        "positions_one", _config(max_position_embeddings=1), ("'max_position_embeddings'", "2")
    ),
    Corruption("positions_huge", _config(max_position_embeddings=10**9), ("1048576",)),
    Corruption("eos_missing", _no_eos, (CONFIG, "'eos_token_id'", "missing")),
    Corruption(
        "eos_outside",
        _edit_json("generation_config.json", eos_token_id=[11, 512]),
        ("generation_config.json", "'eos_token_id'", "[11, 512]"),
    ),
    Corruption("bos_negative", _config(bos_token_id=-1), ("'bos_token_id'", "-1")),
    Corruption("dtype_unknown", _config(torch_dtype="float64"), ("'torch_dtype'", "float32")),
    Corruption("dtype_a_number", _config(dtype=16, torch_dtype=None), ("'dtype'", "16")),
    Corruption("activation_other", _config(activation="relu"), ("'activation'", "'gelu'")),
    Corruption(
        "quantized",
        _config(quantization_config={"quant_method": "gptq", "bits": 4}),
        ("'quantization_config.quant_method'", "must be one of bitsandbytes"),
    ),
    Corruption(
        "residual_after_norm",
        _config(apply_residual_connection_post_layernorm=True),
        ("'apply_residual_connection_post_layernorm'", "only false"),
    ),
    Corruption("field_unknown", _config(logit_scale=0.5), ("'logit_scale'", "does not know")),
    Corruption("window_unknown", _config(sliding_window=256), ("'sliding_window'", "256")),
)
