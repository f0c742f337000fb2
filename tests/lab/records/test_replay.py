"""Runs are written down and done again, by one version or by two."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wanspec.core.protocol.events import MessageReceived
from wanspec.core.protocol.messages import Welcome
from wanspec.core.protocol.worker import Worker
from wanspec.errors import ConfigError
from wanspec.lab.records.replay import Answer, Replay
from wanspec.lab.simulation.run import Stage, play
from wanspec.lab.simulation.soak import random_scenario
from wanspec.telemetry.records import EventHandled, MachineBegan
from wanspec.telemetry.trace import Trace, TraceWriter, read_trace
from wanspec.telemetry.tracer import Tracer

ROOT = Path(__file__).parents[3]
SEED = 2
"""A short run with faults."""


def record(path: Path, seed: int = SEED) -> Stage:
    with TraceWriter(path) as trace:
        return play(random_scenario(seed), trace)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    record(tmp_path / "run.jsonl")
    return tmp_path / "run.jsonl"


def texts_of(answers: list[Answer]) -> dict[int, list[int]]:
    texts: defaultdict[int, list[int]] = defaultdict(list)
    for effect in [effect for answer in answers for effect in answer.effects if effect["kind"] == "emit"]:
        texts[effect["session"]] += effect["tokens"]
    return texts


@pytest.mark.parametrize("seed", range(8))
def test_a_run_full_of_faults_is_done_again_to_the_last_token(seed: int, tmp_path: Path) -> None:
    stage = record(tmp_path / "run.jsonl", seed)
    answers = list(Replay(tmp_path / "run.jsonl"))
    assert {session: text for session, text in texts_of(answers).items() if text} == {
        session: request.tokens for session, request in stage.cluster.requests.items()
    }
    assert not [answer for answer in answers if answer.departed or any(effect["kind"] == "raised" for effect in answer.effects)]
    assert [effect.effects for effect in Replay(tmp_path / "run.jsonl")] == [answer.effects for answer in answers]


def test_events_and_times_are_those_that_the_machine_was_given(recording: Path) -> None:
    told = [record for record in read_trace(recording) if isinstance(record, EventHandled)]
    assert [(answer.t, answer.event) for answer in Replay(recording)] == [(each.t, each.event) for each in told]


def test_a_trace_for_figures_holds_no_events(tmp_path: Path) -> None:
    trace, path = Trace(), tmp_path / "run.jsonl"
    play(random_scenario(SEED), trace)
    with TraceWriter(path, keeps_events=False) as written:
        play(random_scenario(SEED), written)
    assert trace.records == read_trace(path)
    assert trace.records
    assert not [record for record in trace.records if isinstance(record, EventHandled | MachineBegan)]


def test_what_a_machine_refuses_is_an_answer_and_its_last(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run.jsonl") as trace:
        worker = Tracer(trace, "worker").recorded(Worker)(vocabulary_size=100, context_length=50, max_sessions=2)
        for _ in range(2):
            with pytest.raises(Exception, match="a second welcome"):
                worker.handle(MessageReceived(message=Welcome(version=5, controller_name="c")), now=0.5)
    (answer,) = Replay(tmp_path / "run.jsonl")
    assert answer.effects == [{"kind": "raised", "error": "RemoteProtocolError", "text": "a second welcome"}]


def changed(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    return path


def other_pass(lines: list[dict[str, Any]]) -> None:
    """The machine's first verify is of another pass."""
    first = next(line for line in lines if line.get("event", {}).get("kind") == "verified")
    first["asked"]["digest"] += 1


def test_a_machine_that_asks_for_another_pass_is_told_no_more(recording: Path) -> None:
    before = list(Replay(recording))
    after = list(Replay(changed(recording, other_pass)))
    (departed,) = [answer for answer in after if answer.departed]
    assert "the result is of a pass over sessions 1" in departed.departed
    assert departed.effects == []
    mine = [answer.line for answer in after if answer.machine == departed.machine]
    assert mine[-1] == departed.line < max(answer.line for answer in before if answer.machine == departed.machine)
    others = [answer.line for answer in before if answer.machine != departed.machine]
    assert others == [answer.line for answer in after if answer.machine != departed.machine]


def test_a_recording_may_be_packed_and_its_torn_last_line_is_dropped(recording: Path) -> None:
    packed = recording.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(recording.read_bytes() + b'{"kind":"event_handled","t":'))
    assert [answer.effects for answer in Replay(packed)] == [answer.effects for answer in Replay(recording)]


def no_settings(lines: list[dict[str, Any]]) -> None:
    del lines[:]
    lines.append({"kind": "event_handled", "t": 0.0, "site": "worker", "machine": "1-1", "event": {"kind": "deadline"}})


def no_machine(lines: list[dict[str, Any]]) -> None:
    lines[:] = [{"kind": "machine_began", "t": 0.0, "site": "worker"}]


@pytest.mark.parametrize(
    ("change", "why"),
    [(no_settings, "how machine 1-1 was made is missing"), (no_machine, "line 1 is no record of a machine: .*missing required field")],
)
def test_a_file_that_is_no_recording_is_refused(change: Any, why: str, recording: Path) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match=why):
        list(Replay(changed(recording, change)))


@pytest.mark.parametrize("content", [None, b"\x1f\x8b\x08\x00cut off", b"not packed"])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read the recording .*run\.jsonl\.gz: "):
        list(Replay(path))


# Two versions.


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another version, in which one constant differs."""
    folder = tmp_path_factory.mktemp("old")
    for name in ("src", "bench"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "src" / "wanspec" / "core" / "protocol" / "site.py"
    text = file.read_text(encoding="utf-8")
    assert "MAX_PATIENT_RTT_S = 1.0" in text
    file.write_text(text.replace("MAX_PATIENT_RTT_S = 1.0", "MAX_PATIENT_RTT_S = 0.05"), encoding="utf-8")
    return folder


def compare(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "bench" / "replay.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_a_version_is_like_itself(recording: Path) -> None:
    status, said = compare(ROOT, recording)
    assert status == 0, said
    assert ["run.jsonl", "all"] in [line.split()[:2] for line in said.splitlines()]


def test_a_changed_constant_is_found_and_shown_with_what_came_before(checkout: Path, recording: Path) -> None:
    status, said = compare(checkout, recording)
    assert status == 1
    assert "then the first difference" in said
    assert "  event:  line" in said
    assert re.search(r"^-(\d+) deadline\.t = [\d.]+\n\+\1 deadline\.t = ", said, re.MULTILINE), said
    assert "--intended" in said


def test_a_difference_that_is_meant_is_no_failure_and_the_next_recording_follows(checkout: Path, recording: Path) -> None:
    status, said = compare(checkout, recording, recording, "--intended", "patience")
    assert (status, said.count("then the first difference")) == (0, 2), said
    assert "Intended: patience." in said


def test_a_recording_that_fits_neither_version_is_no_success(recording: Path) -> None:
    status, said = compare(ROOT, changed(recording, other_pass))
    assert status == 1
    assert "run.jsonl no longer fits from line" in said
    assert "record anew: python bench/record.py FOLDER" in said


def test_what_is_missing_is_named_with_its_fix(recording: Path, tmp_path: Path) -> None:
    for arguments, why in [
        ((tmp_path / "none", recording), "git worktree add"),
        ((tmp_path, recording), "has no bench/replay.py"),
        ((ROOT, tmp_path / "none.jsonl"), "bench/record.py"),
    ]:
        status, said = compare(*arguments)
        assert (status, said.startswith("error: "), why in said) == (1, True, True), said


def test_a_trace_without_machines_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text("")
    status, said = compare(ROOT, tmp_path / "run.jsonl")
    assert (status, "holds no events of machines" in said) == (1, True)


def test_a_version_that_cannot_read_a_recording_says_why(recording: Path) -> None:
    status, said = compare(ROOT, changed(recording, no_settings))
    assert (status, "how machine 1-1 was made is missing; record anew" in said) == (1, True)
