"""Rows of an engine's steps in recordings. A step repeats the texts of the step before, so only their new tokens are written.

A row that continues a row of the step before has that row's number, `after`, counted from 0, and only its new tokens; any other row has all
of its tokens. Writer and reader remember one step.
"""

from __future__ import annotations

from wanspec.core.protocol.events import Row, StepFinished
from wanspec.telemetry.fact_codec import Facts
from wanspec.telemetry.facts import Event, event_facts


class RowWriter:
    """Writes the steps of one machine."""

    def __init__(self) -> None:
        self._before: dict[bytes, int] = {}
        """Number of each text in the step before."""

    def write(self, event: Event) -> Facts | None:
        """The facts of a step, whose rows are read at once; None: it is another kind of event."""
        if not isinstance(event, StepFinished):
            return None
        rows = [self._facts_of(row) for row in event.rows]
        self._before = {row.tokens.packed(0, len(row.tokens)): number for number, row in enumerate(event.rows)}
        return {**event_facts(StepFinished(rows=())), "rows": rows}

    def _facts_of(self, row: Row) -> Facts:
        tokens, end = row.tokens, len(row.tokens)
        after = self._before.get(tokens.packed(0, end - row.num_new))
        if after is None:
            return {"tokens": tokens.slice(0, end), "new": row.num_new}
        return {"after": after, "tokens": tokens.slice(end - row.num_new, end), "new": row.num_new}


class RowReader:
    """Reads the steps of one machine, in order."""

    def __init__(self) -> None:
        self._before: list[list[int]] = []

    def read(self, facts: Facts) -> Facts:
        """The facts, with all tokens of a step's rows."""
        if "rows" not in facts:
            return facts
        rows = facts["rows"]
        self._before = [[*(self._before[row["after"]] if "after" in row else ()), *row["tokens"]] for row in rows]
        return {**facts, "rows": [{"tokens": text, "new": row["new"]} for text, row in zip(self._before, rows, strict=True)]}
