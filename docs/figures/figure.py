"""A figure of the docs: a table, some sentences or a picture, the commands that it comes from, and its place in a page.

In its page a figure stands between two remarks, `<!-- figure: NAME -->` and `<!-- end of figure -->`, with its commit and date as the last
line. What stands there is written by `make figures` and by nobody else, from a record of what its commands gave (`record.py`), so that a
page cannot disagree with its command. The exceptions are figures that a person puts together: they have no `body` and no record, and the
same remarks and last line.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import record
from record import Outcome, Record

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"<!-- figure: (?P<name>[a-z0-9-]+) -->\n"
    r"(?P<body>.*?)\n\*As of commit (?P<commit>[0-9a-f]{7,40}), (?P<date>\d{4}-\d\d-\d\d)\.\*\n<!-- end of figure -->\n",
    re.DOTALL,
)
RESULT, PICTURES = "RESULT.json", "PICTURES"
"""Where a command names them: a file that is read afterwards, and a folder whose pictures are kept."""


class Cost(StrEnum):
    """What it takes to make a figure, and so when it is made."""

    SECONDS = "seconds"
    """A function of the code: the tests make it and compare."""
    MINUTES = "minutes"
    """Likewise, by `make figures` only."""
    DEAR = "dear"
    """Many minutes, or real processes on a quiet machine: by name only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What belongs between the two remarks."""

    name: str
    page: str
    """From the repository's root."""
    cost: Cost
    commands: tuple[str, ...]
    """As a person types them at the root; `wanspec` and `python` are those of this interpreter."""
    body: Callable[[Sequence[Outcome]], str] | None
    """Markdown from what the commands gave. None: a person puts it together from what they print, and writes commit and date."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """Drawn into PICTURES under the first name, and kept beside the page under the second."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Files that commands read, by name, with their contents."""
    keys: frozenset[str] = frozenset()
    """Entries of the commands' JSON that `body` reads, at any depth: the record keeps these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A figure as it stands in a page."""

    page: str
    name: str
    commit: str
    date: str
    body: str


def blocks_of(page: str) -> list[Block]:
    """Every figure that stands in a page."""
    text = (ROOT / page).read_text("utf-8")
    return [Block(page=page, **match.groupdict()) for match in BLOCK.finditer(text)]


def made(figure: Figure) -> tuple[tuple[Outcome, ...], dict[str, bytes]]:
    """Run a figure's commands. Returns what they gave, and the pictures by their names beside the page. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in figure.inputs.items():
            (folder / file).write_text(content, "utf-8")
        outcomes = tuple(run(command, figure, folder) for command in figure.commands)
        return outcomes, {kept: (folder / PICTURES / drawn).read_bytes() for drawn, kept in figure.pictures.items()}


def run(command: str, figure: Figure, folder: Path) -> Outcome:
    """Run one command at the root, its files in `folder`. Raises CalledProcessError."""
    (folder / PICTURES).mkdir(exist_ok=True)
    files = {RESULT, PICTURES, *figure.inputs}
    words = [str(folder / word) if word.partition("/")[0] in files else word for word in shlex.split(command)]
    starts = {"wanspec": [sys.executable, "-m", "wanspec"], "python": [sys.executable]}
    (folder / RESULT).unlink(missing_ok=True)
    done = subprocess.run([*starts[words[0]], *words[1:]], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603  # our own
    if (folder / RESULT).exists():
        return Outcome(result=record.pruned(json.loads((folder / RESULT).read_bytes()), figure.keys))
    return Outcome(lines=tuple(line.rstrip() for line in done.stdout.strip("\n").splitlines()))


def put(figure: Figure, outcomes: tuple[Outcome, ...], pictures: Mapping[str, bytes]) -> bool:
    """Write a figure into its page, and its pictures and record, as of now.

    Returns whether that changed anything; what is unchanged keeps its commit and date.
    """
    assert figure.body is not None
    path = ROOT / figure.page
    body, digests = figure.body(outcomes), {name: record.digest(picture) for name, picture in pictures.items()}
    (block,) = [block for block in blocks_of(figure.page) if block.name == figure.name]
    old = record.read(figure.name)
    if old and block.body == body and (old.commands, old.outcomes, old.pictures) == (figure.commands, outcomes, digests):
        return False
    new = Record(commit=commit(), date=str(dt.datetime.now(dt.UTC).date()), commands=figure.commands, outcomes=outcomes, pictures=digests)
    record.write(figure.name, new)
    for name, picture in pictures.items():
        path.with_name(name).write_bytes(picture)
    replaced = f"<!-- figure: {figure.name} -->\n{body}\n*As of commit {new.commit}, {new.date}.*\n<!-- end of figure -->\n"
    text = path.read_text("utf-8")
    path.write_text(BLOCK.sub(lambda match: replaced if match["name"] == figure.name else match[0], text), "utf-8")
    return True


def commit() -> str:
    """That the working tree is of."""
    return subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()  # noqa: S607  # git's place differs


def is_committed() -> bool:
    """Whether what figures are made of is as its commit has it."""
    return subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "src", "bench"], cwd=ROOT, check=False).returncode == 0  # noqa: S607  # likewise


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(
        "| " + " | ".join(cells) + " |\n" if number != 1 else "|" + "|".join(cells) + "|\n" for number, cells in enumerate(lines)
    )


def printed(outcomes: Sequence[Outcome]) -> str:
    """What the first command printed, as it stands."""
    return "".join(f"    {line}".rstrip() + "\n" for line in outcomes[0].lines)
