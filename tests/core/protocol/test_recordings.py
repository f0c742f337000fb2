"""Recordings of real runs, told to this version's machines again. `bench/record.py` makes them, `bench/replay.py` compares two versions.

A recording fits as long as the machines ask for the passes that were run. A change of a policy may end that: then record anew, and the diff
of the text that this test compares is empty all the same.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import pytest

from wanspec.core.policy import adaptive, pass_times
from wanspec.core.protocol import proposer
from wanspec.core.speculation import calibration
from wanspec.lab.records.replay import Answer, Replay
from wanspec.telemetry.facts import EVENTS

FOLDER = Path(__file__).parent / "recordings"
FILES = sorted(FOLDER.glob("*.jsonl.gz"))
COMMAND = Path(__file__).parents[3] / "bench" / "record.py"
MAX_BYTES = 2_000_000
"""Of all of them: a checkout holds every version of each."""
ANEW = "if that is meant, record anew: python bench/record.py tests/core/protocol/recordings (and its --help, for vllm)"
UNSEEN = {"pass_failed"}
"""Events that no run of ours meets."""

Told = tuple[list[dict[str, object]], float | None]


def told(answers: Sequence[Answer]) -> list[Told]:
    return [(answer.effects, answer.deadline) for answer in answers]


@lru_cache(maxsize=len(FILES))
def answers_to(path: Path) -> list[Answer]:
    return list(Replay(path))


def recorded_texts(path: Path) -> dict[int, list[int]]:
    """What the controller gave out when it was recorded."""
    texts: defaultdict[int, list[int]] = defaultdict(list)
    for line in gzip.decompress(path.read_bytes()).splitlines():
        record = msgspec.json.decode(line)
        if record["kind"] == "tokens_emitted":
            texts[record["session"]] += record["tokens"]
    return texts


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.partition(".")[0])
def test_a_recorded_run_is_done_again_to_the_last_token(path: Path) -> None:
    texts: defaultdict[int, list[int]] = defaultdict(list)
    for answer in answers_to(path):
        assert not answer.departed, f"{path.name}, line {answer.line}: {answer.departed}; {ANEW}"
        for effect in answer.effects:
            assert effect["kind"] != "raised", f"{path.name}, line {answer.line}: {effect}"
            if effect["kind"] == "emit":
                texts[effect["session"]] += effect["tokens"]
    assert texts == recorded_texts(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.partition(".")[0])
def test_a_recorded_run_is_the_same_each_time(path: Path) -> None:
    assert told(list(Replay(path))) == told(answers_to(path))


CONSTANTS = [(adaptive, "GUESSED_PACE"), (calibration, "LENIENCE"), (pass_times, "SMOOTHING"), (proposer, "ABSENT_S")]


@pytest.mark.parametrize(("module", "name"), CONSTANTS, ids=[name for _, name in CONSTANTS])
def test_a_changed_constant_is_found(module: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, 1.5 * getattr(module, name))
    pairs = ((one, other) for path in FILES for one, other in zip(answers_to(path), Replay(path), strict=False))
    assert any(told([one]) != told([other]) for one, other in pairs)


def test_every_kind_of_event_is_in_a_recording() -> None:
    seen = {answer.event["kind"] for path in FILES for answer in answers_to(path)}
    assert seen == {line.partition(":")[0] for line in EVENTS.values()} - UNSEEN


def run_command(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, str(COMMAND), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("run", ["virtual", pytest.param("faults", marks=pytest.mark.slow)])
def test_the_command_makes_recordings_that_fit(run: str, tmp_path: Path) -> None:
    status, said = run_command(tmp_path / "new", run)
    assert status == 0, said
    answers = list(Replay(tmp_path / "new" / f"{run}.jsonl.gz"))
    assert len(answers) > 100
    assert not [answer for answer in answers if answer.departed]


def test_a_run_that_is_unknown_is_refused_by_name(tmp_path: Path) -> None:
    status, said = run_command(tmp_path, "marathon")
    assert (status, "there is no run marathon; choose from one-user" in said) == (1, True)


def test_the_recordings_are_small() -> None:
    assert sum(path.stat().st_size for path in FILES) <= MAX_BYTES
