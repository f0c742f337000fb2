"""Recordings done again: the machines of this version, made and told as a trace file says.

What a model answered fits only the pass that it was asked for. A machine that asks for another pass than was recorded has departed from the
recording, and nothing after that can be said about it: it is told no more. What workers said would also have been something else from
there on, but a machine takes whatever comes.
"""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from wanspec.core.speculation.calibration import CalibrationBook
from wanspec.errors import ConfigError
from wanspec.telemetry.fact_codec import Facts
from wanspec.telemetry.facts import Event, Machine, effect_facts, event_of, machine_of
from wanspec.telemetry.recording import Handle, PassesAsked, RowReader
from wanspec.telemetry.records import EventHandled, MachineBegan, PassAsked


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a machine said to an event of a recording."""

    line: int
    """The line's number in the file, from 1."""
    machine: str
    t: float
    event: Facts
    effects: list[Facts]
    """In order; what an error of the machine said stands among them."""
    deadline: float | None
    cpu_s: float
    """Of `handle` and `next_deadline`."""
    departed: str = ""
    """Why the event does not fit, where it does not: it was not told, nor is any other of this machine's."""


class Replay:
    """Machines made and told as a recording says. Iterate for their answers.

    Raises ConfigError on a file that cannot be read, or that says what this version does not know.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._machines: dict[str, _Machine] = {}
        self._books: dict[str, CalibrationBook] = {}

    def __iter__(self) -> Iterator[Answer]:
        for line, record in read_recording(self._path):
            try:
                answer = self._do(line, record)
            except (ConfigError, TypeError, ValueError, LookupError, AttributeError) as error:
                raise ConfigError(f"{self._path}, line {line}: {error}; record anew") from error
            if answer is not None:
                yield answer

    def _do(self, line: int, record: MachineBegan | EventHandled) -> Answer | None:
        if isinstance(record, MachineBegan):
            self._machines[record.machine] = _Machine(machine_of(record.settings, self._books))
            return None
        if record.machine not in self._machines:
            raise ConfigError(f"how machine {record.machine} was made is missing")
        machine = self._machines[record.machine]
        return None if machine.is_over else machine.tell(line, record)


class _Machine:
    """One machine of a recording."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._asked = PassesAsked()
        self._rows = RowReader()
        self.is_over = False
        """Whether it is told no more: it has departed from the recording, or failed."""

    def tell(self, line: int, record: EventHandled) -> Answer:
        """Tell it, unless that fits no more."""
        event = event_of(self._rows.read(record.event))
        asked = self._asked.answered(record.event)
        departed, effects, deadline, cpu_s = "", list[Facts](), None, 0.0
        if asked != record.asked:
            departed = f"it asked for {_pass_words(asked)}, and the result is of {_pass_words(record.asked)}"
            self.is_over = True
        else:
            effects, deadline, cpu_s = self._handle(event, record.t)
        return Answer(
            line=line,
            machine=record.machine,
            t=record.t,
            event=record.event,
            effects=effects,
            deadline=deadline,
            cpu_s=cpu_s,
            departed=departed,
        )

    def _handle(self, event: Event, now: float) -> tuple[list[Facts], float | None, float]:
        """Effects, deadline and CPU seconds."""
        began = time.thread_time()
        try:
            effects = cast("Handle", self._machine.handle)(event, now=now)
            deadline = self._machine.next_deadline()
        except Exception as error:  # noqa: BLE001  # whatever it is, another version may say the same
            self.is_over = True
            return [{"kind": "raised", "error": type(error).__name__, "text": str(error)}], None, 0.0
        cpu_s = time.thread_time() - began
        facts = [effect_facts(effect) for effect in effects]
        for each in facts:
            self._asked.note(each)
        return facts, deadline, cpu_s


def _pass_words(asked: PassAsked | None) -> str:
    if asked is None:
        return "no pass"
    return f"a pass over sessions {', '.join(map(str, asked.sessions))} with {sum(asked.rows)} rows, digest {asked.digest:08x}"


def read_recording(path: Path) -> Iterator[tuple[int, MachineBegan | EventHandled]]:
    """What a trace file says of machines, with its lines' numbers; `.gz` is unpacked. Raises ConfigError."""
    kinds = {b"machine_began", b"event_handled"}
    decoder = msgspec.json.Decoder(MachineBegan | EventHandled)
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n") and any(kind in line[:40] for kind in kinds):
                    yield number, decoder.decode(line)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"cannot read the recording {path}: {getattr(error, 'strerror', None) or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}, line {number} is no record of a machine: {error}") from error
