"""Transcripts: stories in which a machine is told of one event after another, with its answers below each.

`pytest --rewrite-transcripts` writes the answers anew. `transcript/` knows the words, and is the place to adapt when events or effects
get other names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import pytest
from tests.core.protocol.transcript.lines import CommandError
from tests.core.protocol.transcript.stages import Stage, stage_for

from wanspec.core.protocol.effects import Effect
from wanspec.core.protocol.events import ControllerEvent, ProposerEvent, WorkerEvent
from wanspec.core.protocol.messages import ControllerMessage, Hello, WorkerMessage

FOLDER = Path(__file__).parent / "transcripts"
FILES = sorted(FOLDER.glob("*.txt"))
RULE, SILENCE, FLAG = "----", "nothing", "--rewrite-transcripts"


class Part(NamedTuple):
    """Some lines of a transcript."""

    number: int
    """Of the first, from 1."""
    commands: list[str]
    """None in a part that is only read."""
    answers: list[str]
    """What is said below the rule; of a part without commands its text."""


def parts(text: str) -> Iterator[Part]:
    """Lines that are only read, one by one; and commands with the rule and the answers below them, up to an empty line."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        if not lines[number] or lines[number].startswith("#"):
            yield Part(number + 1, [], [lines[number]])
            number += 1
            continue
        end = next((index for index in range(number, len(lines)) if not lines[index]), len(lines))
        paragraph = lines[number:end]
        rule = paragraph.index(RULE) if RULE in paragraph else len(paragraph)
        yield Part(number + 1, paragraph[:rule], paragraph[rule + 1 :])
        number = end


def play(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Stage | None, list[tuple[Part, list[str]]]]:
    """Each part of a transcript with what the machine answers now."""
    stage: Stage | None = None
    played: list[tuple[Part, list[str]]] = []
    for part in parts(path.read_text(encoding="utf-8")):
        answers: list[str] = []
        for number, command in enumerate(part.commands, start=part.number):
            wrong = ""
            try:
                if stage is None:
                    stage = stage_for(command, monkeypatch)
                else:
                    answers += stage.play(command)
            except (CommandError, ValueError, LookupError) as error:
                wrong = f"{type(error).__name__}: {error}"
            if wrong:
                pytest.fail(f"{path.name}:{number}: {command}\n{wrong}", pytrace=False)
        played.append((part, (answers or [SILENCE]) if part.commands else part.answers))
    return stage, played


def rewritten(played: list[tuple[Part, list[str]]]) -> str:
    """The transcript with these answers."""
    lines: list[str] = []
    for part, answers in played:
        lines += [*part.commands, RULE, *answers] if part.commands else answers
    return "\n".join(lines) + "\n"


def difference(path: Path, played: list[tuple[Part, list[str]]]) -> str | None:
    """Where the machine first answers otherwise than the transcript says, for a person to read."""
    differing = [(part, answers) for part, answers in played if part.answers != answers]
    if not differing:
        return None
    part, answers = differing[0]
    places = sum(bool(part.commands) for part, _ in played)
    same = next((index for index, (old, new) in enumerate(zip(part.answers, answers, strict=False)) if old != new), None)
    line = part.number + len(part.commands) + 1 + (min(len(part.answers), len(answers)) if same is None else same)
    diff = list(difflib.ndiff(part.answers, answers))
    return "\n".join([
        f"{path.name}:{line}: the machine answers otherwise ({len(differing)} of {places} answers differ, this is the first)",
        *[f"  {command}" for command in part.commands],
        *[f"{each[0]} {each[2:]}" for each in diff if not each.startswith("?")],
        f"- is in the transcript, + is new. If it is meant: pytest {FLAG}, and say in the commit why each line changes.",
    ])  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_machines_answer_as_the_transcript_says(path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    _, played = play(path, monkeypatch)
    if request.config.getoption(FLAG):
        path.write_text(rewritten(played), encoding="utf-8")
    elif (found := difference(path, played)) is not None:
        pytest.fail(found, pytrace=False)


def test_every_kind_of_event_effect_and_message_has_its_place_in_a_story(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[type] = set()
    for path in FILES:
        stage, _ = play(path, monkeypatch)
        assert stage is not None
        seen |= stage.seen
    kinds = {*get_args(ControllerEvent), *get_args(WorkerEvent), *get_args(ProposerEvent), *get_args(Effect)}
    kinds |= {*get_args(WorkerMessage), *get_args(ControllerMessage)} - {Hello}  # said before there is a machine
    assert sorted(kind.__name__ for kind in kinds - seen) == []


STORY = """# A worker dials in.
controller
join worker=1
----
to worker 1: ping number=1
"""


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    return path


def test_an_answer_that_differs_is_shown_with_its_file_its_line_and_the_flag(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story.write_text(STORY.replace("ping number=1", "ping number=2"), encoding="utf-8")
    found = difference(story, play(story, monkeypatch)[1])
    assert found is not None
    first, _, command, old, new, advice = found.splitlines()
    assert first.startswith("story.txt:5: ")
    assert (command, old, new) == ("  join worker=1", "- to worker 1: ping number=2", "+ to worker 1: ping number=1")
    assert FLAG in advice


@pytest.mark.parametrize("answer", ["", "----\n", "----\nto worker 1: ping number=7\nand more\n"])
def test_answers_are_written_anew_and_the_prose_stays(story: Path, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    story.write_text(STORY[: STORY.index(RULE)] + answer, encoding="utf-8")
    assert rewritten(play(story, monkeypatch)[1]) == STORY


@pytest.mark.parametrize(
    ("line", "why"), [("jump", "no command jump"), ("join", "needs worker="), ("join worker=1 x=2", "does not know x")]
)
def test_a_command_that_cannot_be_played_names_its_line(story: Path, line: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    story.write_text(STORY.replace("join worker=1", line), encoding="utf-8")
    with pytest.raises(pytest.fail.Exception, match=rf"story\.txt:3: {line}\n.*{why}"):
        play(story, monkeypatch)
