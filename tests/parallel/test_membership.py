"""What ranks find out about each other before they load."""

from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint
from support.engines import engine_options
from tiercel.errors import ConfigError
from tiercel.parallel import interface
from tiercel.parallel.alike import compare, encode_facts, facts_of
from tiercel.parallel.interface import interface_of
from tiercel.wire.options import World


def test_what_may_differ_does(tmp_path: Path) -> None:
    """Each machine has its own folders, cores and logs."""
    make_checkpoint(tmp_path / "here", "7b")
    make_checkpoint(tmp_path / "there", "7b")
    one = facts_of(engine_options(tmp_path / "here", "cpu", threads=1))
    other = facts_of(engine_options(tmp_path / "there", "cpu", threads=4, log_level="debug"))
    compare(one, encode_facts(other).encode(), 1)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"dtype": "float16"}, "the ranks differ in --dtype: float32 on rank 1, float16 on rank 0"),
        ({"max_batch_size": 9}, "--max-batch-size"),
        ({"quantize": "bitsandbytes"}, "--quantize"),
    ],
)
def test_other_flags(tmp_path: Path, theirs: dict[str, object], message: str) -> None:
    make_checkpoint(tmp_path, "7b")
    ours = facts_of(engine_options(tmp_path, "cpu", dtype="float32"))
    first = facts_of(engine_options(tmp_path, "cpu", **{"dtype": "float32"} | theirs))
    with pytest.raises(ConfigError, match=message):
        compare(ours, encode_facts(first).encode(), 1)


def test_another_model_of_the_same_size(tmp_path: Path) -> None:
    facts = []
    for seed in (0, 1):
        make_checkpoint(tmp_path / str(seed), "7b", seed=seed)
        facts.append(facts_of(engine_options(tmp_path / str(seed), "cpu")))
    with pytest.raises(ConfigError, match="the ranks differ in the model's files"):
        compare(facts[1], encode_facts(facts[0]).encode(), 1)


def test_a_name_of_the_loopback_misleads_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface.socket, "gethostbyname", lambda _: "127.0.1.1")
    here = World(0, 4, 0, 2, "node0", 29500)
    with pytest.raises(ConfigError, match="--master-addr node0 is the loopback on this machine"):
        interface_of(here)
    interface_of(World(0, 2, 0, 2, "localhost", 29500))
    assert interface_of(World(0, 2, 0, 1, "127.0.0.1", 29500)) == interface_of(None)
