"""Tests without their program skip, or fail where nothing may be left out."""

import pytest

from support.tools import tool


def test_a_missing_program_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "", "0"):
        monkeypatch.delenv("REQUIRE_TOOLS", raising=False)
        if value is not None:
            monkeypatch.setenv("REQUIRE_TOOLS", value)
        with pytest.raises(pytest.skip.Exception, match="no-such-program is not installed"):
            tool("no-such-program")


def test_a_required_program_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRE_TOOLS", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed"):
        tool("no-such-program")


def test_a_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRE_TOOLS", "1")
    assert tool("python3").endswith("python3")
