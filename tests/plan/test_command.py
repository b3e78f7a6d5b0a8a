"""`tiercel plan` as a user meets it: where the model comes from, advice, errors, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint
from tiercel import eyas
from tiercel.errors import ConfigError
from tiercel.model.config import load_spec
from tiercel.plan.advice import remedy
from tiercel.plan.cards import CARDS, Card, card
from tiercel.plan.command import PlanRequest, plan_text
from tiercel.plan.memory import Workload, plan_memory
from tiercel.plan.models import PUBLISHED, published
from tiercel.plan.sizes import Storage
from tiercel.plan.source import named_spec


@pytest.mark.parametrize(
    "name", ["7b", "falcon-7b", "tiiuae/falcon-7b", "tiiuae/falcon-7b-instruct", "Falcon-7B"]
)
def test_published_names(name: str) -> None:
    assert published(name) == ("falcon-7b", PUBLISHED["falcon-7b"])


def test_more_published_names() -> None:
    for name, plain in {
        "tiiuae/falcon-180B-chat": "falcon-180b",
        "tiiuae/falcon-11B": "falcon-11b",
        "tiiuae/Falcon2-11B": "falcon-11b",
        "tiiuae/falcon-rw-1b": "falcon-rw-1b",
    }.items():
        found = published(name)
        assert found is not None
        assert found[0] == plain
    assert published("tiiuae/falcon-mamba-7b") is None


def test_a_folder_and_a_file_say_the_same(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "40b")
    copy = tmp_path / "other-name.json"
    copy.write_bytes((folder / "config.json").read_bytes())
    spec = load_spec(folder)
    assert named_spec(str(folder))[1] == named_spec(str(folder / "config.json"))[1] == spec
    assert named_spec(str(copy))[1] == spec


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((eyas.path() / "config.json").read_bytes())
    text, code = plan_text(PlanRequest(str(tmp_path), "16"))
    assert code == 0
    assert "fits: --max-batch-total-tokens" in text


def test_a_config_that_is_no_falcon_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match=r"config\.json: field 'model_type' is 'llama'"):
        plan_text(PlanRequest(str(path)))


def test_a_name_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="without a network there are falcon-7b"):
        plan_text(PlanRequest("nobody/falcon-3b"))


@pytest.mark.parametrize("model", list(PUBLISHED))
@pytest.mark.parametrize("name", [*CARDS, "12", "48", "24", "96"])
def test_one_flag_makes_it_fit(model: str, name: str) -> None:
    """Whatever the plan advises fits when it is planned in turn."""
    spec, gpu, load = PUBLISHED[model], card(name), Workload()
    for quantize, double in ((None, False), ("bitsandbytes", False), ("bitsandbytes-nf4", False)):
        storage = Storage(quantize, double, "bfloat16")
        if plan_memory(spec, storage, gpu, 1, load).fits:
            continue
        flag = remedy(spec, storage, gpu, 1, load)
        if flag is None:
            assert not plan_memory(spec, storage, gpu, 1, Workload(512)).fits
            continue
        kind, _, value = flag.partition(" ")
        shards = int(value) if kind == "--num-shard" else 1
        if kind == "--max-batch-prefill-tokens":
            load_then, storage_then = Workload(int(value)), storage
        elif kind == "--max-total-tokens":
            load_then, storage_then = Workload(max_total_tokens=int(value)), storage
        elif kind == "--double-quant":
            load_then, storage_then = load, Storage(quantize, True, "bfloat16")
        else:
            mode, _, rest = value.partition(" ")
            storage_then = storage if shards > 1 else Storage(mode, bool(rest), "bfloat16")
            load_then = load
        assert plan_memory(spec, storage_then, gpu, shards, load_then).fits, flag


def test_the_remedy_is_the_cheapest() -> None:
    spec, load = PUBLISHED["falcon-40b"], Workload()
    bf16, int8 = Storage(None, False, "bfloat16"), Storage("bitsandbytes", False, "bfloat16")
    assert remedy(spec, int8, card("48"), 1, load) == "--max-batch-prefill-tokens 512"
    assert remedy(spec, bf16, CARDS["a100-80"], 1, load) == "--quantize bitsandbytes"
    assert remedy(spec, bf16, CARDS["a100-40"], 1, load) == "--quantize bitsandbytes-nf4"
    assert remedy(spec, bf16, CARDS["a10g"], 1, load) == "--num-shard 4"
    assert remedy(PUBLISHED["falcon-180b"], bf16, Card("tiny", 10**9), 1, load) is None


def test_it_says_so_when_nothing_fits() -> None:
    text, code = plan_text(PlanRequest("180b", "1"))
    assert code == 5
    assert "DOES NOT FIT" in text
    assert "no single flag makes it fit" in text
    assert "none, on up to eight of these cards" in text


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (PlanRequest("7b", "a10g", num_shard=0), "--num-shard is 0"),
        (PlanRequest("7b", "a10g", max_batch_size=-1), "--max-batch-size is -1"),
        (PlanRequest("7b", dtype="int3"), "--dtype int3"),
        (PlanRequest("7b", quantize="bitsandbytes"), "need --gpu"),
        (PlanRequest("40b", "a10g", num_shard=3), "--num-shard 3"),
        (PlanRequest("7b", "a10g", quantize="awq"), "--quantize awq is not supported"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(request_: PlanRequest, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_text(request_)


def test_the_command_itself_and_no_torch() -> None:
    """The printed answer, the exit code, and that planning imports no torch."""
    code = """
import sys
sys.argv = ["tiercel", "plan", "40b", "--gpu", "a10g"]
from tiercel.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 5, run.stderr
    assert "change one flag: --num-shard 4" in run.stdout
    assert run.stderr == ""
