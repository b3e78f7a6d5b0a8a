"""The bar that people see while they wait."""

import pytest

from tiercel.model.progress import byte_bar


def test_the_bar_shows_bytes_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_bar("Loading weights", 3 * 1024 * 1024) as advance:
        advance(1024 * 1024)
        advance(2 * 1024 * 1024)
    shown = capsys.readouterr()
    assert not shown.out
    assert "Loading weights" in shown.err
    assert "3.0/3.0 MiB" in shown.err
    assert "0:00:00" in shown.err  # time left
