"""Do two versions of the machines do the same? Recorded runs are done again by both, and what they ask for is compared one by one.

    git worktree add /tmp/old COMMIT
    python bench/replay.py /tmp/old tests/core/protocol/recordings/*           # the runs that are kept, see bench/record.py
    python bench/replay.py /tmp/old controller.jsonl worker.jsonl         # files of --trace, of any run

A recording is every event of a machine with its time. This checkout's machines and those of OLD_CHECKOUT are told all of it, and must ask
for the same, floats to the last bit, with the same deadlines. The first difference is shown with the events before it, and ends the
comparison with status 1: from there on the two do not live through the same. Where it is meant, say why by --intended: it ends its
recording all the same, and the others follow.

A recording fits as long as a machine asks for the passes that were run then. Where both versions ask for another one, that is said, and the
status is 1: make the recording anew, with either version.

CPU time, in microseconds per event, is that of the machines' calls, without reading and writing. Each checkout reads recordings by its own
adapter, src/wanspec/telemetry/facts.py, so that classes and fields may have other names in the other one.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.status import Status
from rich.table import Table

NEW = Path(__file__).resolve().parents[1]
EVENTS_BEFORE = 4
"""Shown before a difference."""
MAX_SHOWN = 300
"""Characters of an event."""


T = TypeVar("T")
BAD_RECORDING = 3
"""Exit status of a checkout that cannot read a recording."""


class ReplayError(Exception):
    """Nothing can be compared; the message names the fix."""


class Answer(Struct, frozen=True):
    """What a version said to one event: a line of `--answers`, alike in all versions."""

    line: int
    """Of the recording."""
    machine: str
    t: float
    event: dict[str, Any]
    asks: list[dict[str, Any]]
    """Its effects in order, and last its deadline."""
    departed: str
    """Why the event does not fit, and neither this nor a later one was told to the machine; empty: it fits."""
    cpu_s: float

    @property
    def comparable(self) -> tuple[object, ...]:
        """What must be alike."""
        return self.line, self.machine, self.asks, bool(self.departed)


class Comparison:
    """One recording, done again by both versions."""

    def __init__(self, recording: Path) -> None:
        self.recording = recording
        self.events = self.effects = 0
        """Alike."""
        self.old_s = self.new_s = 0.0
        """CPU time of these."""
        self.departures: list[str] = []
        self.difference = ""

    def run(self, old: Path, status: Status) -> None:
        """Compare until the end, or the first difference. Raises ReplayError."""
        before: defaultdict[str, deque[Answer]] = defaultdict(lambda: deque(maxlen=EVENTS_BEFORE))
        with answers(old, self.recording) as olds, answers(NEW, self.recording) as news:
            for of_old, of_new in zip(olds, news, strict=True):
                if of_old.comparable != of_new.comparable:
                    self.difference = "\n".join([self._alike(), *shown(before[of_old.machine], of_old, of_new, old)])
                    return
                self._add(of_old, of_new)
                before[of_old.machine].append(of_old)
                status.update(f"{self.recording.name}: {self.events} events alike")
        if not self.events:
            raise ReplayError(f"{self.recording} holds no events of machines; make one by bench/record.py, or by --trace")

    def _add(self, of_old: Answer, of_new: Answer) -> None:
        if of_old.departed:
            self.departures.append(
                f"{self.recording.name} no longer fits from line {of_old.line} on, where both versions of machine {of_old.machine} want "
                f"another pass: {of_old.departed}. What comes after has not been compared; record anew: python bench/record.py FOLDER"
            )
            return
        self.events += 1
        self.effects += len(of_old.asks) - 1
        self.old_s += of_old.cpu_s
        self.new_s += of_new.cpu_s

    def _alike(self) -> str:
        return f"{self.recording.name}: {self.events} events with {self.effects} effects are alike; then the first difference:"


@contextmanager
def answers(checkout: Path, recording: Path) -> Iterator[Iterator[Answer]]:
    """What a checkout's machines say to a recording, in a process of its own. Raises ReplayError where that fails."""
    command = [sys.executable, str(checkout / "bench" / "replay.py"), "--answers", str(recording.resolve())]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve() / "src")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:  # noqa: S603  # a checkout of ours
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            yield read_answers(child, child.stdout, child.stderr, checkout)
        finally:
            child.kill()  # where a difference was found it has more to say


def read_answers(child: subprocess.Popen[bytes], stdout: IO[bytes], stderr: IO[bytes], checkout: Path) -> Iterator[Answer]:
    """One by one. Raises ReplayError where the process fails."""
    decoder = msgspec.json.Decoder(Answer)
    for line in stdout:
        yield decoder.decode(line)
    complaint = stderr.read().decode().strip()
    match child.wait():
        case 0:
            return
        case status if status == BAD_RECORDING:
            raise ReplayError(complaint)
        case status:
            raise ReplayError(f"{checkout} failed: {' / '.join(complaint.splitlines()[-3:]) or f'status {status}'}")


def shown(before: deque[Answer], of_old: Answer, of_new: Answer, old: Path) -> list[str]:
    """A difference, for a person to read."""
    return [
        *[f"  before: {event_words(each)}" for each in before],
        f"  event:  {event_words(of_old)}",
        f"--- {old}",
        f"+++ {NEW}",
        *list(difflib.unified_diff(ask_lines(of_old), ask_lines(of_new), lineterm="", n=2))[2:],
    ]


def event_words(answer: Answer) -> str:
    """One line about an event."""
    words = json.dumps(answer.event)
    end = "" if len(words) <= MAX_SHOWN else f"... ({len(words)} characters)"
    return f"line {answer.line}, machine {answer.machine}, t={answer.t!r}: {words[:MAX_SHOWN]}{end}"


def ask_lines(answer: Answer) -> list[str]:
    """What a machine asks for, a line for each value."""
    if answer.departed:
        return [f"nothing: {answer.departed}"]
    return [
        line
        for number, asked in enumerate(answer.asks, start=1)
        for name, value in asked.items()
        for line in value_lines(f"{number} {asked['kind']}.{name}", value)
    ]


def value_lines(path: str, value: Any) -> Iterator[str]:  # noqa: ANN401  # of JSON
    """The values within a value, with the way to each; what holds but numbers and words is shown whole."""
    match value:
        case dict() if any(isinstance(each, dict | list) for each in value.values()):
            for name, each in value.items():
                yield from value_lines(f"{path}.{name}", each)
        case [dict() | list(), *_]:
            for index, each in enumerate(value):
                yield from value_lines(f"{path}[{index}]", each)
        case _:
            yield f"{path} = {json.dumps(value)}"


def table(comparisons: list[Comparison]) -> Table:
    """Of what was alike; microseconds of CPU time per event."""
    made = Table(box=SIMPLE_HEAD)
    for title in ("recording", "alike"):
        made.add_column(title, no_wrap=True)
    for title in ("events", "effects", "old us", "new us", "new/old"):
        made.add_column(title, justify="right", no_wrap=True)
    for each in comparisons:
        is_whole = not each.difference and not each.departures
        old_us, new_us = (1e6 * cpu_s / max(1, each.events) for cpu_s in (each.old_s, each.new_s))
        made.add_row(
            each.recording.name,
            "all" if is_whole else "a part",
            f"{each.events}",
            f"{each.effects}",
            f"{old_us:.1f}",
            f"{new_us:.1f}",
            f"{new_us / old_us:.2f}" if old_us else "",
        )
    return made


def compare(old: Path, recordings: list[Path], *, intended: str | None, console: Console) -> int:
    """Do it; the exit status. Raises ReplayError."""
    check(old, recordings)
    compared: list[Comparison] = []
    with console.status("") as status:
        for recording in recordings:
            compared.append(Comparison(recording))
            compared[-1].run(old, status)
            if compared[-1].difference and intended is None:
                break
    console.print(table(compared))
    differences = [each.difference for each in compared if each.difference]
    departures = [departure for each in compared for departure in each.departures]
    for text in [*departures, *differences]:
        console.print(text, markup=False)
    if differences and intended is not None:
        console.print(f"\nIntended: {intended}. What comes after in the same recording has not been compared.", markup=False)
    elif differences:
        console.print('\nIf it is meant, say why: --intended "..."', markup=False)
    return 1 if departures or (differences and intended is None) else 0


def check(old: Path, recordings: list[Path]) -> None:
    """Raises ReplayError on what is not there."""
    for recording in recordings:
        if recording.is_dir():
            raise ReplayError(f"{recording} is a folder; name the recordings in it: {recording}/*")
        if not recording.is_file():
            raise ReplayError(f"there is no recording {recording}; name a file of --trace, or make some: python bench/record.py FOLDER")
    if not old.is_dir():
        raise ReplayError(f"there is no folder {old}; make it: git worktree add {old} COMMIT")
    if not (old / "bench" / "replay.py").is_file():
        raise ReplayError(
            f"{old} has no bench/replay.py, by which it would replay; name a later commit, or put bench/replay.py and the files that it "
            f"imports from src/wanspec/telemetry there, and adapt its facts.py"
        )


def answer_all(recording: Path) -> None:
    """What this checkout's machines say to a recording, as lines of JSON on standard output."""
    from wanspec.lab.records.replay import Replay  # noqa: PLC0415  # comparing needs none of this version

    encoder = msgspec.json.Encoder()
    for each in _or_exit(Replay(recording)):
        asks = [*each.effects, {"kind": "deadline", "t": each.deadline}]
        answer = Answer(
            line=each.line, machine=each.machine, t=each.t, event=each.event, asks=asks, departed=each.departed, cpu_s=each.cpu_s
        )  # fmt: skip
        sys.stdout.buffer.write(encoder.encode(answer) + b"\n")


def _or_exit(answers: Iterable[T]) -> Iterator[T]:
    """End this process with BAD_RECORDING where the recording is no good."""
    from wanspec.errors import ConfigError  # noqa: PLC0415  # as above

    try:
        yield from answers
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_RECORDING)


def main() -> None:
    """Compare, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT", help="a checkout of the other version")
    parser.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING", help="trace files, also packed ones (.gz)")
    parser.add_argument("--intended", metavar="WHY", help="a difference is meant: show it, and go on with the next recording")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    try:
        sys.exit(compare(arguments.old, arguments.recordings, intended=arguments.intended, console=console))
    except ReplayError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answers"]:  # one checkout asks another
        answer_all(Path(sys.argv[2]))
    else:
        main()
