"""What is found out before several ranks load: each message says what to do."""

import socket
from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint
from support.engines import engine_options
from tiercel.engine.assemble import assemble
from tiercel.errors import ConfigError, OutOfMemory
from tiercel.parallel.cards import Card
from tiercel.parallel.launch import local_world
from tiercel.parallel.preflight import check_cards, check_shared_memory

GB = 10**9
A100 = Card("NVIDIA A100-SXM4-80GB", 79 * GB)


def test_too_few_cards() -> None:
    with pytest.raises(
        ConfigError, match="4 ranks on this machine need 4 GPUs, but 2 can be seen; lower"
    ):
        check_cards([A100, A100], 4, GB)


def test_a_card_that_somebody_uses() -> None:
    with pytest.raises(OutOfMemory, match=r"GPU 1 .* has 2.0 GB free, .* need 40.0 GB; end what"):
        check_cards([A100, Card(A100.name, 2 * GB)], 2, 40 * GB)


def test_mixed_cards_are_told(caplog: pytest.LogCaptureFixture) -> None:
    check_cards([A100, Card("NVIDIA A10G", 23 * GB), Card("unused", 0)], 2, GB)
    assert "the GPUs are not alike (NVIDIA A100-SXM4-80GB, NVIDIA A10G)" in caplog.text


def test_a_containers_shared_memory() -> None:
    check_shared_memory(GB)
    with pytest.raises(ConfigError, match=r"has 64 MiB free, .*--shm-size 1g"):
        check_shared_memory(64 << 20)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--master-port {port}: the ranks cannot meet there"):
            local_world(2, port)


def test_a_number_that_the_heads_cannot_be_dealt_to(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "40b")
    with pytest.raises(ConfigError, match="--num-shard 3 does not deal 8 query heads and 2 KV"):
        assemble(engine_options(tmp_path, "cpu", num_shard=3), lambda _: None)
