"""Log lines as text and as JSON."""

import json
import logging
import sys
import threading
from collections.abc import Iterator

import pytest

from tiercel.telemetry.logs import JsonFormatter, TextFormatter, configure_logging


@pytest.fixture
def restored() -> Iterator[None]:
    """The root logger and the levels of others as they were before."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in ("sse_starlette", "uvicorn.access")}
    hooks = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


def _record(message: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("tiercel.test", logging.INFO, "f.py", 1, message, (), None)
    record.fields = fields
    return record


def test_json_lines() -> None:
    line = JsonFormatter().format(_record("request done", route="/generate", total_ms=1.5))
    assert "\n" not in line
    document = json.loads(line)
    assert document.pop("timestamp").endswith("Z")
    assert document == {
        "level": "INFO",
        "message": "request done",
        "target": "tiercel.test",
        "route": "/generate",
        "total_ms": 1.5,
    }


def test_json_lines_carry_tracebacks_on_the_same_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        record = _record("oh no")
        record.exc_info = (type(error), error, error.__traceback__)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_text_lines() -> None:
    line = TextFormatter().format(_record("request done", route="/generate", total_ms=1.5))
    assert line.endswith("INFO    tiercel.test: request done route=/generate total_ms=1.5")


def test_a_message_cannot_start_a_line_of_its_own() -> None:
    line = TextFormatter().format(_record("a\nINFO b", error="c\r\nd\x1b[31m"))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("level", "number"),
    [
        ("debug", logging.DEBUG),
        ("info", logging.INFO),
        ("WARN", logging.WARNING),
        ("error", logging.ERROR),
        ("info,text_generation_router=debug", logging.INFO),
    ],
)
def test_levels(level: str, number: int) -> None:
    configure_logging(level, json=True)
    root = logging.getLogger()
    assert root.level == number
    assert [type(handler.formatter) for handler in root.handlers] == [JsonFormatter]


@pytest.mark.usefixtures("restored")
def test_what_logs_bodies_stays_silent_at_debug(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", json=False)
    logging.getLogger("sse_starlette.sse").debug("chunk: %s", b"a secret answer")
    logging.getLogger("tiercel.api").debug("something of ours")
    written = capsys.readouterr().err
    assert "secret" not in written
    assert "something of ours" in written
