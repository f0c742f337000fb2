"""Tables that a person keeps: CSV with a line of headings, or JSON with a list of objects; what is wrong is named with its line.

Lines of CSV that begin with # are remarks. Columns that nobody asked for are left alone, so that a file may say more than is needed here.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wanspec.errors import ConfigError
from wanspec.files import read_text

MAX_TABLE_BYTES = 16 << 20
"""A mesh of a hundred sites with its quantiles has one."""


class Row:
    """One line of a table, which knows where it stands."""

    def __init__(self, cells: Mapping[str, object], where: str) -> None:
        self.where = where
        self._cells = cells

    def text(self, name: str) -> str:
        """A cell that must say something. Raises ConfigError."""
        value = str(self._cells.get(name) or "").strip()
        if not value:
            raise ConfigError(f"{self.where}: {name} is empty; give it a value")
        if not value.isprintable():
            raise ConfigError(f"{self.where}: {name} is {value!r}; leave out what cannot be printed")
        return value

    def number(self, name: str, *, at_most: float) -> float:
        """A number from 0 to `at_most`. Raises ConfigError."""
        text = self.text(name) if not isinstance(self._cells.get(name), int | float) else str(self._cells[name])
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0.0 <= value <= at_most:
            raise ConfigError(f"{self.where}: {name} is {text}; give a number from 0 to {at_most:g}")
        return value

    def knows(self, name: str) -> bool:
        """Whether there is such a column in this row."""
        return name in self._cells

    def has(self, name: str) -> bool:
        """Whether the cell says anything."""
        return self._cells.get(name) not in (None, "")


def read_rows(path: Path, *, columns: Sequence[str], what: str) -> list[Row]:
    """All rows of a file ending with .json, or else of CSV. `what` it should be is named with its article.

    Raises ConfigError where it cannot be read or lacks one of `columns`.
    """
    text = read_text(path, max_bytes=MAX_TABLE_BYTES, what=what)
    rows = list(_json_rows(text, path, what) if path.suffix == ".json" else _csv_rows(text, path))
    if not rows:
        raise ConfigError(f"{path} has no rows; name {what}, with columns {', '.join(columns)}")
    for name in columns:
        if not any(row.knows(name) for row in rows):
            raise ConfigError(f"{path} has no column {name}; name {what}, with columns {', '.join(columns)}")
    return rows


def _csv_rows(text: str, path: Path) -> Iterator[Row]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    try:
        cells = list(csv.DictReader((line for _, line in lines), skipinitialspace=True))
    except csv.Error as error:
        raise ConfigError(f"{path} is no CSV: {error}") from error
    for (number, _), row in zip(lines[1:], cells, strict=False):
        yield Row({name: value for name, value in row.items() if isinstance(value, str)}, f"{path}, line {number}")


def _json_rows(text: str, path: Path, what: str) -> Iterator[Row]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    items = document.get("rows") if isinstance(document, dict) else document
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"{path} holds no list of objects; name {what}")
    for number, item in enumerate(items, 1):
        yield Row(item, f"{path}, row {number}")
