"""Runs set side by side, as a table on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wanspec.telemetry.metrics import RunRow

HEADINGS = (
    "RTT\nms",
    "ITL\nms",
    "ITL\nratio",
    "local\ndrafts",
    "off-\nload",
    "worker\ndrafts",
    "bytes/\ntoken",
    "tokens",
    "exact",
)
"""Beside the policy's name; they fit a terminal of 80 columns, and so do two short parameters more."""
MAX_WIDTH = 1000
"""No table is as wide."""
LEGEND = (
    "ITL: inter-token latency, and its ratio to colocated; below 1 is faster. local, worker drafts: draft passes made at\n"
    "the controller and at the worker. offload: share of colocated's draft passes that the controller no longer makes.\n"
    "exact: every token equals plain target decoding."
)


def run_table(rows: Sequence[RunRow], *, title: str, points: Sequence[Mapping[str, object]] = ()) -> Table:
    """One line a row; `points`: for each row the values of further parameters, which get columns of their own."""
    parameters = list(dict.fromkeys(name for point in points for name in point))
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0 if parameters else 1), pad_edge=False, collapse_padding=True)
    table.add_column("policy", no_wrap=True)
    for heading in (*(name.rpartition(".")[2].replace("_", "_\n") for name in parameters), *HEADINGS):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        name, *figures = _cells(row)
        table.add_row(name, *(str(points[index].get(parameter, "-")) for parameter in parameters), *figures)
    return table


def compact_table(first: str, headings: Iterable[str], *, title: str, padding: int = 0) -> Table:
    """An empty table for a narrow terminal: a column of names, then columns of figures."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, padding), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def number(value: float | None, form: str) -> str:
    """A figure in this format; a dash where there is none."""
    return "-" if value is None else format(value, form)


def print_table(console: Console, table: Table) -> None:
    """Print every cell whole. rich would cut them to the width of the terminal, and of a pipe it knows no width but 80."""
    width = console.width
    console.width = max(width, console.measure(table, options=console.options.update_width(MAX_WIDTH)).maximum)
    try:
        console.print(table)
    finally:
        console.width = width


def _cells(row: RunRow) -> tuple[str, ...]:
    """A row of the table as text."""
    return (
        row.policy,
        number(row.rtt_ms, ".0f"),
        number(row.itl_ms, ".1f"),
        number(row.itl_ratio, ".2f"),
        str(row.controller_draft_passes),
        number(row.offload_fraction, ".2f"),
        str(row.worker_draft_passes),
        number(row.bytes_per_token, ".0f"),
        str(row.tokens),
        {True: "yes", False: "NO", None: "-"}[row.identical],
    )
