"""Tells a person which workers come and go."""

from __future__ import annotations

from collections.abc import Callable

from wanspec.telemetry.records import Record, WorkerJoined, WorkerLost
from wanspec.telemetry.trace import TraceSink


class Announcer:
    """A `TraceSink` that says what happens to workers, and hands everything on to the one behind it."""

    def __init__(self, sink: TraceSink | None, *, say: Callable[[str], None]) -> None:
        self._sink, self._say = sink, say
        self.keeps_events = sink is not None and sink.keeps_events

    def record(self, record: Record) -> None:
        if isinstance(record, WorkerJoined):
            self._say(f"worker {record.name} has joined")
        elif isinstance(record, WorkerLost):
            self._say(f"worker {record.name} has left: {record.reason}")
        if self._sink is not None:
            self._sink.record(record)
