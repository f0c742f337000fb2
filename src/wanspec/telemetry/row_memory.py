"""The rows of an engine's steps, written down: a step repeats the texts of the one before, so that only what they have gained is kept.

A row that continues one of the step before has its number there, `after`, counted from 0, and only its new tokens; any other has all of its
tokens. Both directions remember one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wanspec.protocol.events import Row

RowFacts = dict[str, Any]


class RowWriter:
    """Writes the steps of one machine."""

    def __init__(self) -> None:
        self._before: dict[bytes, int] = {}
        """The number of each text."""

    def write(self, rows: Sequence[Row]) -> list[RowFacts]:
        """A step's rows, which are read at once."""
        facts = [self._facts_of(row) for row in rows]
        self._before = {row.tokens.packed(0, len(row.tokens)): number for number, row in enumerate(rows)}
        return facts

    def _facts_of(self, row: Row) -> RowFacts:
        tokens, end = row.tokens, len(row.tokens)
        after = self._before.get(tokens.packed(0, end - row.num_new))
        if after is None:
            return {"tokens": tokens.slice(0, end), "new": row.num_new}
        return {"after": after, "tokens": tokens.slice(end - row.num_new, end), "new": row.num_new}


class RowReader:
    """Reads them again, in order."""

    def __init__(self) -> None:
        self._before: list[list[int]] = []

    def read(self, facts: Sequence[RowFacts]) -> list[RowFacts]:
        """The rows with all of their tokens."""
        texts = [[*(self._before[row["after"]] if "after" in row else ()), *row["tokens"]] for row in facts]
        self._before = texts
        return [{"tokens": text, "new": row["new"]} for text, row in zip(texts, facts, strict=True)]
