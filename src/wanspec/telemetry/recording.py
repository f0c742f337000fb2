"""Recordings: the settings and events of machines, in a trace file.

A machine is a function of its settings and of its events with their times, so only these are written, in the words of `facts`. Drivers make
their machines by `Tracer.recorded`; a trace file then has `MachineBegan` and `EventHandled` records, which `replay` reads.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, ParamSpec, Protocol, TypeVar

import msgspec

from wanspec import __version__
from wanspec.core.protocol.effects import Effect
from wanspec.core.protocol.events import Row, StepFinished
from wanspec.telemetry.fact_codec import KIND, Facts
from wanspec.telemetry.facts import PASSES, Event, Machine, effect_facts, event_facts, is_pass, machine_facts
from wanspec.telemetry.records import EventHandled, MachineBegan, PassAsked, Site
from wanspec.telemetry.trace import TraceSink

_numbers = count(1)
"""Numbers of this process's machines."""

P = ParamSpec("P")
M = TypeVar("M", bound=Machine)


class Handle(Protocol):
    """A machine's `handle`."""

    def __call__(self, event: Any, *, now: float) -> list[Effect]: ...  # noqa: ANN401  # one of the machine's


def recorded(made: Callable[P, M], sink: TraceSink, site: Site) -> Callable[P, M]:
    """The same class or function of `facts.MACHINES`, with settings and events of its machines recorded, if the sink keeps events."""

    def make(*args: P.args, **settings: P.kwargs) -> M:
        facts = machine_facts(made, settings)  # before the first event: a calibration goes on learning
        machine = made(*args, **settings)
        recorder = _Recorder(machine.handle, sink, site, facts)
        machine.handle = recorder.handle  # type: ignore[method-assign]  # so that drivers need not know
        return machine

    return make if sink.keeps_events else made


class _Recorder:
    """Records each event of one machine before the machine handles it."""

    def __init__(self, handle: Handle, sink: TraceSink, site: Site, settings: Facts) -> None:
        self._handle, self._sink, self._site = handle, sink, site
        self._settings: Facts | None = settings
        """Settings to record first; None: they are recorded."""
        self._machine = f"{os.getpid()}-{next(_numbers)}"
        self._asked = PassesAsked()
        self._rows = RowWriter()

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        if self._settings is not None:
            began = MachineBegan(t=now, site=self._site, machine=self._machine, settings=self._settings, version=__version__)
            self._sink.record(began)
            self._settings = None
        facts = self._rows.write(event) or event_facts(event)
        asked = self._asked.answered(facts)
        self._sink.record(EventHandled(t=now, site=self._site, machine=self._machine, event=facts, asked=asked))
        effects = self._handle(event, now=now)
        for effect in effects:
            if is_pass(effect):
                self._asked.note(effect_facts(effect))
        return effects


class PassesAsked:
    """The passes under way that a machine asked for, to find the one that a result belongs to."""

    def __init__(self) -> None:
        self._asked: dict[str, PassAsked] = {}
        """Passes by kind."""

    def note(self, effect: Facts) -> None:
        if effect[KIND] in PASSES:
            self._asked[effect[KIND]] = _asked(effect["items"])

    def answered(self, event: Facts) -> PassAsked | None:
        """The pass that ends with this event; None: it ends none."""
        match event[KIND]:
            case "verified":
                return self._asked.pop("verify", None)
            case "drafted":
                return self._asked.pop("draft", None)
            case "pass_failed":
                return self._asked.pop(event["pass"], None)
        return None


def _asked(items: Sequence[Facts]) -> PassAsked:
    question = [
        (item["session"], item["commit"], item["append"], [(node["node"], node["parent"], node["token"]) for node in item["nodes"]])
        for item in items
    ]
    return PassAsked(
        sessions=tuple([item["session"] for item in items]),
        rows=tuple([bool(item["append"]) + len(item["nodes"]) for item in items]),
        digest=zlib.crc32(msgspec.json.encode(question)),
    )


class RowWriter:
    """Writes the steps of one machine's engine. A step repeats the texts of the step before, so only their new tokens are written.

    A row that continues a row of the step before has that row's number, `after`, counted from 0, and only its new tokens; any other row has
    all of its tokens. Writer and reader remember one step.
    """

    def __init__(self) -> None:
        self._before: dict[bytes, int] = {}
        """Number of each text in the step before."""

    def write(self, event: Event) -> Facts | None:
        """The facts of a step, whose rows are read at once; None: it is another kind of event."""
        if not isinstance(event, StepFinished):
            return None
        rows = [self._facts_of(row) for row in event.rows]
        self._before = {row.tokens.packed(0, len(row.tokens)): number for number, row in enumerate(event.rows)}
        return {**event_facts(StepFinished(rows=())), "rows": rows}

    def _facts_of(self, row: Row) -> Facts:
        tokens, end = row.tokens, len(row.tokens)
        after = self._before.get(tokens.packed(0, end - row.num_new))
        if after is None:
            return {"tokens": tokens.slice(0, end), "new": row.num_new}
        return {"after": after, "tokens": tokens.slice(end - row.num_new, end), "new": row.num_new}


class RowReader:
    """Reads the steps of one machine, in order."""

    def __init__(self) -> None:
        self._before: list[list[int]] = []

    def read(self, facts: Facts) -> Facts:
        """The facts, with all tokens of a step's rows."""
        if "rows" not in facts:
            return facts
        rows = facts["rows"]
        self._before = [[*(self._before[row["after"]] if "after" in row else ()), *row["tokens"]] for row in rows]
        return {**facts, "rows": [{"tokens": text, "new": row["new"]} for text, row in zip(self._before, rows, strict=True)]}
