"""Sinks of records, and reading a trace file back."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

from wanspec.errors import ConfigError, bare_cause
from wanspec.telemetry.records import Record

_log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 1.0
"""A killed process loses about this much of its trace; flushing every record would cost a system call each."""


class TraceSink(Protocol):
    """Takes records as they happen, from any thread."""

    @property
    def keeps_events(self) -> bool:
        """Whether it takes the settings and events of machines, which are large and of no use for figures."""
        ...

    def record(self, record: Record) -> None: ...


class NoTrace:
    """Keeps nothing."""

    keeps_events = False

    def record(self, record: Record) -> None:
        """Drop it."""


class Trace:
    """Keeps the records in memory without a bound, for tests, demos and simulations."""

    def __init__(self, *, keeps_events: bool = False) -> None:
        """`keeps_events`: machines' too, for a file that will be written."""
        self.keeps_events = keeps_events
        self.records: list[Record] = []

    def record(self, record: Record) -> None:
        self.records.append(record)


class TraceWriter:
    """Writes a trace file, one record a line; a context manager.

    Raises ConfigError when the file cannot be opened, and OSError, with the file's name, when the disk is full.
    """

    def __init__(self, path: str | PathLike[str], *, keeps_events: bool = True) -> None:
        """`keeps_events`: machines' too; no figure needs them."""
        self._path, self.keeps_events = path, keeps_events
        try:
            self._file = Path(path).open("wb")  # noqa: SIM115 - open until close()
        except OSError as error:
            raise ConfigError(f"cannot write a trace to {path}: {error.strerror}; name a file in a folder that exists") from error
        self._encoder = msgspec.json.Encoder()
        self._flushed_at: float | None = None
        self.failure: OSError | None = None
        """The error of a record that could not be written; None: all were."""

    def record(self, record: Record) -> None:
        try:
            self._file.write(self._encoder.encode(record) + b"\n")
            if self._flushed_at is None or not 0 <= record.t - self._flushed_at < FLUSH_INTERVAL_S:
                self._file.flush()
                self._flushed_at = record.t
        except OSError as error:
            error.filename, self.failure = self._path, error
            with suppress(OSError):
                self._file.close()  # else the interpreter would try again at exit, and complain
            raise

    def close(self) -> None:
        """Write the rest. Repeating it is harmless."""
        try:
            self._file.close()
        except OSError as error:
            error.filename = self._path
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class SparedTrace:
    """Passes records on until one cannot be written, then gives the trace up, so that the traced work can go on."""

    def __init__(self, sink: TraceSink) -> None:
        self._sink: TraceSink | None = sink
        self.keeps_events = sink.keeps_events
        self.lost_records = 0
        """Records that were not written."""

    def record(self, record: Record) -> None:
        if self._sink is not None:
            try:
                self._sink.record(record)
            except OSError as error:
                self._sink = None
                _log.warning("the trace is given up, and the work goes on without it: %s", bare_cause(error))
        if self._sink is None:
            self.lost_records += 1


def write_trace(records: Iterable[Record], path: str | PathLike[str]) -> None:
    """Write a whole trace file. Raises ConfigError when the file cannot be opened."""
    with TraceWriter(path) as writer:
        for record in records:
            writer.record(record)


def read_trace(path: str | PathLike[str]) -> list[Record]:
    """Read a trace file, checking every record.

    A last line without an end is what a killed process leaves; it is dropped. Raises ConfigError naming the line and what is wrong.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")  # some editors write it
    except OSError as error:
        raise ConfigError(f"cannot read the trace {path}: {error.strerror}") from error
    decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
    return [_read_line(line, decoder=decoder, where=f"{path}, line {number}") for number, line in enumerate(lines[:-1], start=1)]


def _read_line(line: bytes, *, decoder: msgspec.json.Decoder[Record], where: str) -> Record:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is no trace record: {error}") from error
