"""Broken weights and configurations: one line that names the file and the tensor or field."""

import resource
import time
from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint
from support.corrupt import CANARY, CONFIGS, WEIGHTS, Corruption
from tiercel.errors import ConfigError, StartupError, WeightsError
from tiercel.model.checkpoint import Checkpoint
from tiercel.model.config import load_spec


def load_everything(folder: Path) -> None:
    """What a server does before it answers: configuration, headers, every tensor."""
    checkpoint = Checkpoint.open(folder, load_spec(folder))
    for name in checkpoint.names:
        checkpoint.tensor(name)


def refusal(folder: Path, error: type[StartupError]) -> str:
    start = time.monotonic()
    with pytest.raises(error) as caught:
        load_everything(folder)
    assert type(caught.value) is error
    assert time.monotonic() - start < 2
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 600
    assert "; " in line, "a remedy follows the reason"
    return line


@pytest.mark.parametrize("case", WEIGHTS, ids=str)
def test_broken_weights(case: Corruption, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "7b", shards=case.shards)
    load_everything(folder)
    case.apply(folder)
    line = refusal(folder, WeightsError)
    for fragment in case.says:
        assert fragment in line
    assert not (folder / CANARY).exists(), "code in a weight file was run"


@pytest.mark.parametrize("case", CONFIGS, ids=str)
def test_wrong_config(case: Corruption, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "7b", shards=case.shards)
    case.apply(folder)
    line = refusal(folder, ConfigError)
    assert ".json" in line  # whichever: a value may contradict one in another file
    for fragment in case.says:
        assert fragment in line


def test_names_are_unique() -> None:
    for cases in (WEIGHTS, CONFIGS):
        assert len({case.name for case in cases}) == len(cases)
    assert len(WEIGHTS) >= 24
    assert len(CONFIGS) >= 20


def test_tensor_name_with_control_characters_stays_one_line(tmp_path: Path) -> None:
    from support.corrupt import SINGLE, join_file

    folder = make_checkpoint(tmp_path / "model", "7b")
    header = b'{"a\\n\\u001b[31m": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    join_file(folder / SINGLE, header, bytes(4))
    assert "\\x1b" in refusal(folder, WeightsError)


def test_opening_reads_no_tensor_data(tmp_path: Path) -> None:
    """A sparse file of 64 GiB with a true header opens at once and in little memory."""
    import json

    from support.corrupt import SINGLE, join_file

    folder = make_checkpoint(tmp_path / "model", "7b", extra={"vocab_size": 1 << 22})
    spec = load_spec(folder)
    from tiercel.model.config import expected_tensors

    header, end = {}, 0
    for name, shape in expected_tensors(spec).items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    join_file(folder / SINGLE, text, b"")
    with (folder / SINGLE).open("ab") as file:
        file.truncate(8 + len(text) + end)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint = Checkpoint.open(folder, spec)
    assert checkpoint.total_bytes == end > 10**9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024
