"""Who decides how many ranks there are: flags, SageMaker, torchrun."""

import pytest

from tiercel.errors import ConfigError
from tiercel.rank_settings import ALL_GPUS, RankSettings
from tiercel.settings import load_settings
from tiercel.wire.options import World

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2",
}  # fmt: skip
PLACE = {"master_addr": "10.0.0.1", "master_port": 29500}


def test_torchrun() -> None:
    world = RankSettings(**PLACE).world_of(TORCHRUN)
    assert world == World(3, 4, 1, 2, "10.0.0.1", 29500, hosted=True, attempt=2)


@pytest.mark.parametrize("variables", [{}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_alone(variables: dict[str, str]) -> None:
    assert RankSettings().world_of(variables) is None


@pytest.mark.parametrize(
    ("variables", "flags", "message"),
    [
        (TORCHRUN, {}, "but not MASTER_ADDR, MASTER_PORT"),
        (TORCHRUN, PLACE | {"num_shard": 2}, "--num-shard 2 contradicts WORLD_SIZE 4"),
        ({"RANK": "1"}, PLACE, "but not WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE; a launcher"),
        ({"WORLD_SIZE": "4"}, PLACE, "but not RANK, LOCAL_RANK, LOCAL_WORLD_SIZE; a launcher"),
        (TORCHRUN, PLACE | {"sharded": "false"}, "--sharded false contradicts WORLD_SIZE 4"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, PLACE, "LOCAL_RANK 2 must be less than LOCAL_WORLD_SIZE"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, PLACE, "at most WORLD_SIZE 4"),
        (TORCHRUN | {"RANK": "4"}, PLACE, "RANK 4 must be less than WORLD_SIZE 4"),
        (TORCHRUN | {"RANK": "one"}, PLACE, "RANK must be a number, not 'one'"),
        (TORCHRUN | {"WORLD_SIZE": "-4"}, PLACE, "WORLD_SIZE must be a number"),
    ],
)
def test_contradictions(variables: dict[str, str], flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RankSettings(**flags).world_of(variables)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "device", "ranks"),
    [
        ({}, "cuda", 1),
        ({"sharded": "true"}, "auto", ALL_GPUS),
        ({"sharded": "true", "num_shard": 2}, "auto", 2),
        ({"sharded": "false"}, "auto", 1),
        ({"num_shard": 4}, "cpu", 4),
    ],
)
def test_shards(flags: dict[str, object], device: str, ranks: int) -> None:
    assert load_settings(**flags).shards(device) == ranks


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sharded": "false", "num_shard": 2}, "--sharded false contradicts --num-shard 2"),
        ({"sharded": "true"}, "--sharded true counts GPUs: on a CPU, give --num-shard"),
    ],
)
def test_shards_that_cannot_be(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(**flags).shards("cpu")
