"""Logs on standard error: for people, or one JSON object a line. Details are in fields, which hold no prompt and no key."""

from __future__ import annotations

import logging
import traceback
from datetime import UTC, datetime

import msgspec

from wanspec.errors import harmless_words


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(), **fields_of(record)}
        return msgspec.json.encode(line, enc_hook=str).decode()


class PlainLines(logging.Formatter):
    """A line for people; fields follow the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = " ".join(f"{name}={value}" for name, value in fields_of(record).items() if value is not None)
        return f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()} {record.getMessage()} {fields}".rstrip()


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The fields given as `extra={"fields": ...}`, and the trace of an exception."""
    fields = dict(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[1] is not None:
        fields["trace"] = bare_trace(record.exc_info[1])
    return fields


def bare_trace(error: BaseException) -> str:
    """The stack and the kind of an error; its message only where that cannot quote a prompt."""
    words = harmless_words(error)
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__ + (f": {words}" if words else "")


def configure_logs(*, as_json: bool) -> None:
    """Send the process's logs to standard error."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # its other messages can be caused by any client, and ours are better
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
