"""A figure of the docs: a table, some sentences or a picture, the commands that it comes from, and its place in a page.

In its page a figure stands between two remarks, `<!-- figure: NAME -->` and `<!-- end of figure -->`, with its commit and date as the last
line. What stands there is written by `make figures` and by nobody else, so that a page cannot disagree with its command. The exceptions
are figures that a person puts together: they have no `body`, and the same remarks and last line.
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
from typing import Any

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
class Outcome:
    """What a command gave."""

    text: str
    """Printed on standard output."""
    result: Any
    """Of the JSON that it wrote, if it did."""


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


def made(figure: Figure) -> str:
    """Run a figure's commands and return what belongs into its page; its picture is drawn."""
    assert figure.body is not None
    with tempfile.TemporaryDirectory() as folder:
        for name, content in figure.inputs.items():
            (Path(folder) / name).write_text(content, "utf-8")
        outcomes = [run(command, figure, Path(folder)) for command in figure.commands]
        for drawn, kept in figure.pictures.items():
            (ROOT / figure.page).with_name(kept).write_bytes((Path(folder) / PICTURES / drawn).read_bytes())
    return figure.body(outcomes)


def run(command: str, figure: Figure, folder: Path) -> Outcome:
    """Run one command at the root, its files in `folder`. Raises CalledProcessError."""
    (folder / PICTURES).mkdir(exist_ok=True)
    files = {RESULT, PICTURES, *figure.inputs}
    words = [str(folder / word) if word.partition("/")[0] in files else word for word in shlex.split(command)]
    starts = {"wanspec": [sys.executable, "-m", "wanspec"], "python": [sys.executable]}
    (folder / RESULT).unlink(missing_ok=True)
    done = subprocess.run([*starts[words[0]], *words[1:]], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603  # our own
    result = json.loads((folder / RESULT).read_bytes()) if (folder / RESULT).exists() else None
    return Outcome(text=done.stdout, result=result)


def put(figure: Figure, body: str) -> bool:
    """Write a figure into its page, as of now. Returns whether that changed it; an unchanged one keeps its date."""
    path = ROOT / figure.page
    (old,) = [block for block in blocks_of(figure.page) if block.name == figure.name]
    if old.body == body:
        return False
    today = dt.datetime.now(dt.UTC).date()
    replaced = f"<!-- figure: {figure.name} -->\n{body}\n*As of commit {commit()}, {today}.*\n<!-- end of figure -->\n"
    text = path.read_text("utf-8")
    path.write_text(BLOCK.sub(lambda match: replaced if match["name"] == figure.name else match[0], text), "utf-8")
    return True


def commit() -> str:
    """That the working tree is of."""
    return subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()  # noqa: S607


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(
        "| " + " | ".join(cells) + " |\n" if number != 1 else "|" + "|".join(cells) + "|\n" for number, cells in enumerate(lines)
    )


def printed(outcomes: Sequence[Outcome]) -> str:
    """What the first command printed, as it stands."""
    return "".join(f"    {line.rstrip()}".rstrip() + "\n" for line in outcomes[0].text.strip("\n").splitlines())
