"""The bar that people see while they wait."""

import pytest

from tiercel.model import progress
from tiercel.model.progress import byte_bar


def test_lines_come_while_it_goes_on_where_no_terminal_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    with byte_bar("Converting", 3_000_000) as advance:
        advance(1_000_000)
        first = capsys.readouterr().err
        assert first.startswith("Converting: 1.0 of 3.0 MB after 0.0 s, about ")
        assert first.endswith(" s left\n")
        monkeypatch.setattr(progress, "EVERY_S", 60.0)
        advance(1_000_000)
        assert not capsys.readouterr().err  # not at every call
        advance(1_000_000)
    assert capsys.readouterr().err.startswith("Converting: 3.0 of 3.0 MB")


def test_the_bar_shows_bytes_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with byte_bar("Loading weights", 3 * 1024 * 1024) as advance:
        advance(1024 * 1024)
        advance(2 * 1024 * 1024)
    shown = capsys.readouterr()
    assert not shown.out
    assert "Loading weights" in shown.err
    assert "3.0/3.0 MiB" in shown.err
    assert "0:00:00" in shown.err  # time left
