"""`tiercel convert`: pickles to safetensors, bytes unchanged, nothing run."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.checkpoints import VARIANTS, make_checkpoint, write_tokenizer
from support.corrupt import CANARY, Bomb
from tiercel.errors import ConfigError, WeightsError
from tiercel.model.checkpoint import Checkpoint
from tiercel.model.config import load_spec
from tiercel.model.convert import convert

EMBEDDING = "transformer.word_embeddings.weight"
SINGLE = "pytorch_model.bin"


def source(folder: Path, variant: str = "7b", **options: Any) -> Path:
    return make_checkpoint(folder / "old", variant, weights="bin", **options)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def rewrite(folder: Path, **changes: Any) -> dict[str, Any]:
    """Save the single pickle of `folder` again, with `changes`; None removes an entry."""
    state = torch.load(folder / SINGLE, weights_only=True) | changes
    state = {name: value for name, value in state.items() if value is not None}
    torch.save(state, folder / SINGLE)
    return state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_are_those_of_the_pickle(variant: str, dtype: str, tmp_path: Path) -> None:
    old = source(tmp_path, variant, dtype=dtype, shards=3, prefix=dtype == "float32")
    state: dict[str, torch.Tensor] = {}
    for file in old.glob("*.bin"):
        state |= torch.load(file, weights_only=True)
    new = convert(old, tmp_path / "new", shard_bytes=50_000)
    index = json.loads((new / "model.safetensors.index.json").read_text())
    tensors = stored(new)
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert len(set(index["weight_map"].values())) > 2
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert len(plain) == len(state)
    for name, tensor in state.items():
        copy = plain[name.removeprefix("transformer.")]
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)
    assert Checkpoint.open(new, load_spec(new)).total_bytes == index["metadata"]["total_size"]


def test_one_file_and_its_neighbours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    old = source(tmp_path)
    write_tokenizer(old, 300)
    (old / "modeling_RW.py").write_text("raise SystemExit\n")
    torch.save({"lr": 0.1}, old / "training_args.bin")
    (old / "flax_model.msgpack").write_bytes(b"x")
    new = convert(old, tmp_path / "deep" / "new")
    assert {path.name for path in new.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert new.stat().st_mode & 0o777 == 0o755
    assert (new / "tokenizer.json").read_bytes() == (old / "tokenizer.json").read_bytes()
    progress = capfd.readouterr().err
    assert "Converting old: 0.7 of 0.7 MB after" in progress  # a bar where there is a terminal
    assert [path.name for path in new.parent.iterdir()] == ["new"]


def test_old_format_without_zip(tmp_path: Path) -> None:
    old = source(tmp_path)
    state = torch.load(old / SINGLE, weights_only=True)
    torch.save(state, old / SINGLE, _use_new_zipfile_serialization=False)
    assert torch.equal(stored(convert(old, tmp_path / "new"))[EMBEDDING], state[EMBEDDING])


def test_tied_head_is_dropped_if_equal(tmp_path: Path) -> None:
    old = source(tmp_path)
    embedding = torch.load(old / SINGLE, weights_only=True)[EMBEDDING]
    torch.save({"lm_head.weight": embedding.clone()}, old / "pytorch_model_head.bin")
    assert "lm_head.weight" not in stored(convert(old, tmp_path / "new"))
    torch.save({"lm_head.weight": embedding * 2}, old / "pytorch_model_head.bin")
    with pytest.raises(WeightsError, match=r"head\.bin: tensor 'lm_head.*tie_word_embeddings"):
        convert(old, tmp_path / "other")


def test_shared_and_strided_storage(tmp_path: Path) -> None:
    """Tensors that are views of one storage, in any order of strides, become plain copies."""
    old = source(tmp_path)
    state = torch.load(old / SINGLE, weights_only=True)
    norm = state["transformer.ln_f.weight"]
    both = torch.stack([norm, state["transformer.ln_f.bias"]], dim=1)
    up = "transformer.h.0.mlp.dense_h_to_4h.weight"
    transposed = state[up].t().contiguous().t()
    rewrite(
        old,
        **{
            "transformer.ln_f.weight": both[:, 0],
            "transformer.ln_f.bias": both[:, 1],
            "lm_head.weight": state[EMBEDDING],
            up: transposed,
            "transformer.h.0.self_attention.maybe_rotary.inv_freq": torch.ones(8),
        },
    )
    tensors = stored(convert(old, tmp_path / "new"))
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(tensors[name], tensor)


def test_untied_model_keeps_both_of_a_shared_storage(tmp_path: Path) -> None:
    old = source(tmp_path, "11b")
    state = torch.load(old / SINGLE, weights_only=True)
    rewrite(old, **{"lm_head.weight": state[EMBEDDING]})
    tensors = stored(convert(old, tmp_path / "new"))
    assert torch.equal(tensors["lm_head.weight"], tensors[EMBEDDING])


@pytest.mark.parametrize("form", ["zip", "legacy", "plain", "nested"])
def test_nothing_in_a_pickle_is_run(form: str, tmp_path: Path) -> None:
    old = source(tmp_path)
    state = torch.load(old / SINGLE, weights_only=True)
    bad = state | {"transformer.ln_f.weight": Bomb(tmp_path)}
    if form == "plain":
        (old / SINGLE).write_bytes(pickle.dumps(Bomb(tmp_path), protocol=2))
    elif form == "nested":
        torch.save({"state": [bad]}, old / SINGLE)
    else:
        torch.save(bad, old / SINGLE, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: .*'posix\.system'") as caught:
        convert(old, tmp_path / "new")
    assert str(caught.value).isprintable()
    assert not (tmp_path / CANARY).exists()
    assert not (tmp_path / "new").exists()
    if form == "plain":  # the canary can sing
        pickle.loads((old / SINGLE).read_bytes())
        assert (tmp_path / CANARY).exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"transformer.ln_f.weight": None}, "does not hold tensor 'ln_f.weight'"),
        ({"transformer.x": torch.ones(1)}, "transformer.x"),
        ({"transformer.ln_f.weight": torch.ones(81)}, "[81]"),
        ({"transformer.ln_f.weight": torch.ones(1).expand(1 << 40)}, "shape"),
        ({"transformer.ln_f.weight": torch.ones(80, dtype=torch.float64)}, "float64"),
        ({"transformer.ln_f.weight": torch.ones(80).to_sparse()}, "plain tensor"),
        ({"transformer.ln_f.weight": [1.0] * 80}, "plain tensor"),
        ({"ln_f.weight": torch.ones(80)}, "also in"),
        ({"transformer.ln_f.weight": torch.ones(80) / 0}, "'transformer.ln_f.weight' holds NaN or"),
    ],
)
def test_wrong_tensors(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    old = source(tmp_path)
    rewrite(old, **change)
    with pytest.raises(WeightsError) as caught:
        convert(old, tmp_path / "new")
    assert says in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_truncated_pickles(keep: float, tmp_path: Path) -> None:
    old = source(tmp_path)
    size = (old / SINGLE).stat().st_size
    os.truncate(old / SINGLE, int(size * keep) if keep == 0.5 else int(keep) % size)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: cannot be read"):
        convert(old, tmp_path / "new")


@pytest.mark.parametrize("link", [False, True])
def test_a_missing_file_is_named(link: bool, tmp_path: Path) -> None:
    """As an interrupted download leaves it, in a hub's cache as a link that leads nowhere."""
    old = source(tmp_path, shards=2)
    missing = old / "pytorch_model-00002-of-00002.bin"
    missing.unlink()
    if link:
        missing.symlink_to(old / "nowhere")
    with pytest.raises(WeightsError, match=r"pytorch_model-00002-of-00002\.bin: .*; "):
        convert(old, tmp_path / "new")


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {"a": "../x.bin"}}', "[]"])
def test_broken_index(text: str, tmp_path: Path) -> None:
    old = source(tmp_path, shards=2)
    (old / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin\.index\.json: "):
        convert(old, tmp_path / "new")


def test_an_existing_target_is_not_overwritten(tmp_path: Path) -> None:
    old = source(tmp_path)
    target = tmp_path / "new"
    target.mkdir()
    convert(old, target)  # empty: nothing to lose
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    for place in (target, target / "config.json", old):
        with pytest.raises(ConfigError, match="exists"):
            convert(old, place)
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before


def test_no_weights_and_no_room(tmp_path: Path) -> None:
    old = source(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        convert(old, tmp_path / "file" / "new")
    (old / SINGLE).unlink()
    with pytest.raises(WeightsError, match=r"no \.bin weights"):
        convert(old, tmp_path / "new")


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    """A size limit on files is a disk that fills up: the error names the target."""
    import subprocess
    import sys

    import tiercel

    old = source(tmp_path)
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tiercel.errors import ConfigError\n"
        "from tiercel.model.convert import convert\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        f"    convert(Path({str(old)!r}), Path({str(tmp_path / 'new')!r}))\n"
        "except ConfigError as error:\n"
        "    sys.exit(2 if 'cannot be written: File too large' in str(error) else 1)\n"
    )
    environment = {"PYTHONPATH": str(Path(tiercel.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
