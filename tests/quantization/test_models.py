"""Every Falcon variant in every mode against transformers' model with bitsandbytes' layers in it,
and checkpoints that bitsandbytes saved against quantizing while loading.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.bitsandbytes_models import MODES, load_quantized, save_quantized, stated
from support.checkpoints import SHAPES, VARIANTS, load_reference, make_checkpoint, write_json
from support.plans import PlanDriver
from support.workers import RecordingSampler, make_worker
from tiercel.errors import ConfigError, WeightsError
from tiercel.model.checkpoint import Checkpoint
from tiercel.model.config import load_spec
from tiercel.model.spec import StoredQuantization

PROMPT_TOKENS, NEW_TOKENS = 40, 6
FLOAT32 = 1e-5
# LLM.int8 rounds activations by what is in the batch, and a reference reads all tokens at once.
LLM_INT8 = {"float32": 2e-2, "bfloat16": 5e-2}
# Against the difference that the same model has unquantized: these weights are large, so that two
# implementations in bfloat16 differ by 1.5 to 1.8% in their logits. The cap is there in case that
# the unquantized ones are wrong, too. Layer by layer: test_module_parity.py.
BFLOAT16_TIMES_PLAIN, BFLOAT16_CAP = 2.0, 5e-2
NESTED_TOLERANCE = 2e-3  # some codes of the statistics differ: test_bytes.py


def logits_of(folder: Path, **options: Any) -> tuple[torch.Tensor, list[int]]:
    """Ours [new tokens, vocab] after a chunked prompt, and all tokens."""
    worker = make_worker(folder, **options)
    driver = PlanDriver(worker)
    draw = random.Random(3)
    sequence = driver.sequence(0, [draw.randrange(512) for _ in range(PROMPT_TOKENS)])
    driver.run([sequence], NEW_TOKENS, chunk=17)
    assert sequence.failure is None
    assert isinstance(worker.runner.sampler, RecordingSampler)
    return worker.runner.sampler.recorded(0), sequence.tokens


def reference_logits(
    folder: Path, variant: str, tokens: list[int], quantize: str, double_quant: bool
) -> torch.Tensor:
    attention = "sdpa" if SHAPES[variant].alibi else "eager"
    model = load_quantized(folder, quantize, double_quant=double_quant, attention=attention)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens[:-1]])).logits
    return logits[0, PROMPT_TOKENS - 1 :]


def plain_error(folder: Path, variant: str) -> float:
    """Of the unquantized model, ours against transformers."""
    ours, tokens = logits_of(folder)
    attention = "sdpa" if SHAPES[variant].alibi else "eager"
    with torch.inference_mode():
        theirs = load_reference(folder, attention=attention)(torch.tensor([tokens[:-1]])).logits
    return error(ours, theirs[0, PROMPT_TOKENS - 1 :])


def bfloat16_tolerance(folder: Path, variant: str) -> float:
    return min(BFLOAT16_TIMES_PLAIN * plain_error(folder, variant), BFLOAT16_CAP)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("quantize", "double_quant"), [*MODES, ("bitsandbytes-llm-int8", False)], ids=str
)
def test_logits(
    tmp_path: Path, quantize: str, double_quant: bool, variant: str, dtype: str
) -> None:
    make_checkpoint(tmp_path, variant, dtype=dtype)
    ours, tokens = logits_of(tmp_path, quantize=quantize, double_quant=double_quant)
    theirs = reference_logits(tmp_path, variant, tokens, quantize, double_quant)
    if quantize == "bitsandbytes-llm-int8":
        tolerance = LLM_INT8[dtype]
    elif dtype == "bfloat16":
        tolerance = bfloat16_tolerance(tmp_path, variant)
    else:
        tolerance = NESTED_TOLERANCE if double_quant else FLOAT32
    assert error(ours, theirs) < tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("quantize", "double_quant"), MODES, ids=str)
def test_a_saved_checkpoint_is_the_same_model(
    tmp_path: Path, quantize: str, double_quant: bool, variant: str, dtype: str
) -> None:
    plain = make_checkpoint(tmp_path / "plain", variant, dtype=dtype)
    saved = save_quantized(plain, tmp_path / "saved", quantize, double_quant=double_quant)
    ours, tokens = logits_of(plain, quantize=quantize, double_quant=double_quant)
    loaded, same_tokens = logits_of(saved)
    if double_quant:
        sixteen = bfloat16_tolerance(plain, variant) if dtype == "bfloat16" else None
        # A tie may end otherwise; up to there they have read the same.
        read = [a == b for a, b in zip(tokens, same_tokens, strict=True)] + [False]
        until = read.index(False) - PROMPT_TOKENS + 1
        assert until >= 1
        assert error(loaded[:until], ours[:until]) < (sixteen or NESTED_TOLERANCE)
        theirs = reference_logits(plain, variant, same_tokens, quantize, double_quant)
        assert error(loaded, theirs) < (sixteen or FLOAT32)
    else:
        assert torch.equal(loaded, ours)
        assert tokens == same_tokens


def test_sixteen_bits_and_the_flag_that_says_what_is_there(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain", "40b", dtype="bfloat16")
    saved = save_quantized(plain, tmp_path / "saved", "bitsandbytes-nf4", double_quant=True)
    worker = make_worker(saved, quantize="bitsandbytes-nf4")
    assert worker.quantization == "bitsandbytes-nf4+double-quant"
    assert load_spec(saved).quantization == StoredQuantization("bitsandbytes-nf4", True)


def test_saved_int8_also_runs_exactly(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain", "7b")
    saved = save_quantized(plain, tmp_path / "saved", "bitsandbytes")
    exact, _ = logits_of(plain, quantize="bitsandbytes-llm-int8")
    assert torch.equal(logits_of(saved, quantize="bitsandbytes-llm-int8")[0], exact)


def test_a_layer_that_was_left_out_stays_as_it_is(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain", "7b")
    saved = save_quantized(plain, tmp_path / "saved", "bitsandbytes-nf4")
    tensors = load_file(saved / "model.safetensors")
    name = "transformer.h.1.mlp.dense_4h_to_h.weight"
    original = load_file(plain / "model.safetensors")[name]
    tensors = {key: value for key, value in tensors.items() if not key.startswith(name)}
    save_file(tensors | {name: original}, saved / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint.open(saved, load_spec(saved))
    assert not checkpoint.is_stored(name.removeprefix("transformer."))
    assert torch.equal(checkpoint.tensor(name.removeprefix("transformer.")), original)
    partly, _ = logits_of(saved)
    assert 0 < error(partly, logits_of(plain, quantize="bitsandbytes-nf4")[0]) < 1


def break_saved(folder: Path, quantize: str, changes: dict[str, torch.Tensor | None]) -> None:
    """Replace or remove tensors; a name without a prefix is one of the first MLP's."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        full = f"transformer.h.0.mlp.dense_h_to_4h.{name}"
        assert full in tensors or tensor is not None
        tensors.pop(full, None)
        if tensor is not None:
            tensors[full] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


STATE = "weight.quant_state.bitsandbytes__nf4"
WRONG = [
    ("bitsandbytes", {"SCB": None}, "is quantized, but there is no 'h.0.mlp.dense_h_to_4h.SCB'"),
    ("bitsandbytes", {"SCB": torch.ones(3)}, "for bitsandbytes it must be F32 [320]"),
    ("bitsandbytes", {"SCB": -torch.ones(320)}, "holds a negative absmax"),
    ("bitsandbytes", {"SCB": torch.full((320,), torch.nan)}, "holds NaN or infinities"),
    ("bitsandbytes", {"weight_format": torch.tensor(2, dtype=torch.uint8)}, "is not 0"),
    ("bitsandbytes", {"weight": torch.zeros(80, 320, dtype=torch.int8)}, "must be I8 [320, 80]"),
    ("bitsandbytes", {"extra": torch.ones(1)}, "'transformer.h.0.mlp.dense_h_to_4h.extra'"),
    ("bitsandbytes-nf4", {"weight.absmax": None}, "there is no"),
    ("bitsandbytes-nf4", {"weight.absmax": torch.ones(5)}, "for bitsandbytes-nf4 it must be F32"),
    ("bitsandbytes-nf4", {"weight.quant_map": torch.ones(16)}, "is not the table of nf4"),
    ("bitsandbytes-nf4", {STATE: None}, "there is no"),
    ("bitsandbytes-nf4", {STATE: torch.zeros(9, dtype=torch.uint8)}, "is not JSON"),
    ("bitsandbytes-nf4", {STATE: torch.zeros(5000, dtype=torch.uint8)}, "at most 4096 bytes"),
    ("bitsandbytes-nf4", {"weight.nested_absmax": torch.ones(2)}, "config.json's model has not"),
]  # fmt: skip


@pytest.mark.parametrize(("quantize", "changes", "says"), WRONG, ids=lambda each: str(each)[:40])
def test_a_wrong_part_is_refused(
    tmp_path: Path, quantize: str, changes: dict[str, torch.Tensor | None], says: str
) -> None:
    plain = make_checkpoint(tmp_path / "plain", "7b")
    saved = save_quantized(plain, tmp_path / "saved", quantize)
    break_saved(saved, quantize, changes)
    with pytest.raises(WeightsError) as refusal:
        make_worker(saved)
    assert says in str(refusal.value)
    assert str(saved) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("blocksize", 128, "says blocksize 128; it must be 64"),
        ("shape", [1, 2], "says shape [1, 2]"),
        ("quant_type", "fp4", "says quant_type 'fp4'; it must be 'nf4'"),
        ("nested_blocksize", 64, "says nested_blocksize 64; it must be 256"),
        ("nested_offset", "x", "must be a finite number"),
    ],
)
def test_another_state_is_refused(tmp_path: Path, field: str, value: object, says: str) -> None:
    plain = make_checkpoint(tmp_path / "plain", "7b")
    saved = save_quantized(plain, tmp_path / "saved", "bitsandbytes-nf4", double_quant=True)
    tensors = load_file(saved / "model.safetensors")
    state = json.loads(bytes(tensors[f"transformer.h.0.mlp.dense_h_to_4h.{STATE}"].tolist()))
    text = json.dumps(state | {field: value}).encode()
    break_saved(saved, "", {STATE: torch.tensor(list(text), dtype=torch.uint8)})
    with pytest.raises(WeightsError) as refusal:
        make_worker(saved)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quant_method": "gptq"}, "'quantization_config.quant_method' is 'gptq'"),
        ({"load_in_8bit": True}, "load_in_8bit'"),
        ({"load_in_4bit": False, "_load_in_4bit": False}, "one of them must be true"),
        ({"bnb_4bit_quant_type": "int4"}, "'quantization_config.bnb_4bit_quant_type' is 'int4'"),
        ({"bnb_4bit_quant_storage": "bfloat16"}, "read as uint8 only"),
        ({"llm_int8_has_fp16_weight": True}, "only false is supported"),
        ({"something_new": 1}, "does not know this field"),
        ({"bnb_4bit_quant_type": "fp4"}, "there is no"),
        ({"bnb_4bit_use_double_quant": True}, "must be U8"),
    ],
    ids=str,
)
def test_a_wrong_config_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    plain = make_checkpoint(tmp_path / "plain", "7b")
    saved = save_quantized(plain, tmp_path / "saved", "bitsandbytes-nf4")
    config = json.loads((saved / "config.json").read_bytes())
    config["quantization_config"] = stated("bitsandbytes-nf4") | changes
    write_json(saved / "config.json", config)
    with pytest.raises((ConfigError, WeightsError)) as refusal:
        make_worker(saved)
    assert says in str(refusal.value)


def test_config_and_weights_that_contradict_each_other(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain", "7b")
    saved = save_quantized(plain, tmp_path / "saved", "bitsandbytes")
    config = json.loads((saved / "config.json").read_bytes())
    write_json(plain / "config.json", config)
    with pytest.raises(WeightsError, match="holds no quantized weight"):
        make_worker(plain)
    del config["quantization_config"]
    write_json(saved / "config.json", config)
    with pytest.raises(WeightsError):
        make_worker(saved)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quantize": "bitsandbytes"}, "--quantize bitsandbytes: the checkpoint is saved as"),
        ({"quantize": "bitsandbytes-fp4"}, "saved as bitsandbytes-nf4"),
        ({"double_quant": True}, "--double-quant: the checkpoint is saved without it"),
    ],
)
def test_a_flag_that_contradicts_the_checkpoint(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    plain = make_checkpoint(tmp_path / "plain", "7b")
    saved = save_quantized(plain, tmp_path / "saved", "bitsandbytes-nf4")
    with pytest.raises(ConfigError, match=says):
        make_worker(saved, **options)


def test_double_quant_needs_four_bits(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain", "7b")
    with pytest.raises(ConfigError, match="--double-quant needs --quantize bitsandbytes-nf4"):
        make_worker(plain, quantize="bitsandbytes", double_quant=True)
