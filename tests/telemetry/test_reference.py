"""docs/metrics.md says what the code exposes, and all of it."""

from pathlib import Path

from tiercel.telemetry.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_the_codes() -> None:
    assert PAGE.read_text() == page(), "python -m tiercel.telemetry.reference > docs/metrics.md"
