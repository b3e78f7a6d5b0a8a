"""Log lines: one handler on stderr, as text or JSON, with a record's `fields` beside its message.

Never gives prompts or answers away: libraries that log bodies at DEBUG are held at INFO.
"""

import json
import logging
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType

logger = logging.getLogger(__name__)

LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# sse_starlette writes every chunk of every stream at DEBUG; the others are only noise there.
_HELD_AT_INFO = ("sse_starlette", "asyncio", "httpcore", "httpx", "urllib3", "filelock")


def fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    """The structured part of a record: what was passed as `extra={"fields": {...}}`."""
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, Mapping) else {}


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: timestamp, level, message, target, then the record's fields.

    Among them the rank, where several share a model.
    """

    def __init__(self, rank: int | None = None) -> None:
        super().__init__()
        self._rank = {} if rank is None else {"rank": rank}

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of ASCII."""
        line: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "message": record.getMessage(),
            "target": record.name,
            **self._rank,
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, separators=(",", ":"))


class TextFormatter(logging.Formatter):
    """For people: time, level, rank, target, message, then `name=value` pairs."""

    def __init__(self, rank: int | None = None) -> None:
        super().__init__()
        self._rank = "" if rank is None else f"[rank {rank}] "

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, and its traceback below it if it has one."""
        line = (
            f"{_timestamp(record)} {record.levelname:<7} {self._rank}{record.name}: "
            f"{_one_line(record.getMessage())}"
        )
        pairs = (f"{name}={_one_line(str(value))}" for name, value in fields_of(record).items())
        line = " ".join((line, *pairs))
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def _one_line(text: str) -> str:
    """A caller's text can never start a log line of its own."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def configure_logging(level: str, json: bool, rank: int | None = None) -> None:
    """Replace the root logger's handlers by one on stderr. Unknown levels mean "info".

    `rank`: whose lines these are, where several share a model. With `json`, warnings and what
    nobody catches are lines like all others, too.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(rank) if json else TextFormatter(rank))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    number = LEVELS.get(level.strip().lower(), logging.INFO)
    root.setLevel(number)
    for name in _HELD_AT_INFO:
        logging.getLogger(name).setLevel(max(number, logging.INFO))
    if json:
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread
    # The edge writes one summary line per request; a second one per request says less.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)


def speaks_json() -> bool:
    """Whether log lines are JSON objects in this process, as far as it has been told."""
    return any(isinstance(each.formatter, JsonFormatter) for each in logging.getLogger().handlers)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logger.critical("a defect ends the process", exc_info=(kind, error, trace))


def _uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
    if found.exc_value is not None and found.exc_type is not SystemExit:
        fault = (found.exc_type, found.exc_value, found.exc_traceback)
        logger.critical("a defect ends a thread", exc_info=fault)
