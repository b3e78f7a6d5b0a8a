"""What config.json's `quantization_config` says: bitsandbytes in 8 or 4 bits, or a refusal.

Torch-free. Whether the weights are so is checked where they are read.
"""

from tiercel.model.fields import Fields
from tiercel.model.spec import StoredQuantization

_FLOATS = ("float16", "bfloat16", "float32")


def stored_quantization(fields: Fields) -> StoredQuantization | None:
    """None where the weights are plain. Raises ConfigError for another library or another layout.

    What only says how to compute (thresholds, the compute dtype, modules to leave out) is read
    over: the weights themselves tell which of them are quantized.
    """
    inner = fields.nested("quantization_config")
    if inner is None:
        return None
    inner.text("quant_method", allowed=("bitsandbytes",))
    eight = inner.flag("load_in_8bit", "_load_in_8bit", default=False)
    four = inner.flag("load_in_4bit", "_load_in_4bit", default=False)
    kind = inner.text("bnb_4bit_quant_type", allowed=("fp4", "nf4"), default="fp4")
    double_quant = inner.flag("bnb_4bit_use_double_quant", default=False)
    inner.text("bnb_4bit_compute_dtype", allowed=_FLOATS, default="float32")
    inner.only(
        "bnb_4bit_quant_storage",
        "uint8",
        why="4-bit weights are read as uint8 only; save the model with that storage",
    )
    inner.only(
        "llm_int8_has_fp16_weight", False, why="only false is supported: weights saved in int8"
    )
    inner.number("llm_int8_threshold", low=0.0, high=1e6, default=6.0)
    inner.ignore("llm_int8_enable_fp32_cpu_offload", "llm_int8_skip_modules")
    inner.refuse_unknown()
    if eight == four:
        raise inner.error(
            "load_in_4bit", four, f"load_in_8bit is {str(eight).lower()}; one of them must be true"
        )
    if eight:
        return StoredQuantization("bitsandbytes")
    return StoredQuantization(f"bitsandbytes-{kind}", double_quant)
