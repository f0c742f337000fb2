"""What a figure's commands gave, kept in `docs/figures/records`: a page is held against it without running them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command gave."""

    lines: tuple[str, ...] = ()
    """Printed on standard output; none where there is a result."""
    result: Any = None
    """Of the JSON that it wrote, if it did: the entries that the figure reads, to six digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was made of a figure, when, and of which commit."""

    commit: str
    date: str
    commands: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    pictures: Mapping[str, str]
    """SHA-256 of each picture, by its name beside the page."""


def read(name: str) -> Record | None:
    """A figure's record. None: there is none yet."""
    path = RECORDS / f"{name}.json"
    if not path.exists():
        return None
    document = json.loads(path.read_text("utf-8"))
    outcomes = tuple(Outcome(lines=tuple(each["lines"]), result=each["result"]) for each in document.pop("outcomes"))
    return Record(commands=tuple(document.pop("commands")), outcomes=outcomes, **document)


def write(name: str, record: Record) -> None:
    """Keep a figure's record."""
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"{name}.json").write_text(json.dumps(asdict(record), indent=1) + "\n", "utf-8")


def digest(picture: bytes) -> str:
    """SHA-256 of a picture, as a record has it."""
    return hashlib.sha256(picture).hexdigest()


def pruned(value: object, keys: frozenset[str]) -> object:
    """Of JSON the entries with these keys, at any depth, with six digits of each number."""
    if isinstance(value, dict):
        return {key: pruned(each, keys) for key, each in value.items() if key in keys}
    if isinstance(value, list):
        return [pruned(each, keys) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
