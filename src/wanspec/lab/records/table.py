"""Runs set side by side, as a table on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from wanspec.lab.records.metrics import RunRow
from wanspec.terminal import between_words

HEADINGS = (
    "RTT\nms",
    "ITL\nms",
    "of the\nchain",
    "of\nalone",
    "local/\ntoken",
    "off-\nload",
    "worker\ndrafts",
    "bytes/\ntoken",
    "exact",
)
"""Beside the policy's name; they fit a terminal of 80 columns, and so do two short parameters more."""
MAX_WIDTH = 1000
"""No table is as wide."""
LINE_WIDTH = 120
"""Of prose, where the terminal is wider: longer lines are hard to read."""
LEGEND = (
    "ITL: inter-token latency, then as a share of that of colocated (the chain), and of that of alone: adaptive without a "
    "worker, the best that one site does by itself; below 1 is faster. local/token: draft passes that the controller makes "
    "itself, for each token. offload: share of colocated's draft passes that the controller no longer makes. worker drafts: "
    "draft passes made at the worker. exact: every token equals plain target decoding."
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
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def counted(number: int, what: str) -> str:
    """A number of things: 1 probe, 2 probes."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def number(value: float | None, form: str) -> str:
    """A figure in this format; a dash where there is none."""
    return "-" if value is None else format(value, form)


def print_table(console: Console, table: Table) -> None:
    """Print every word whole: where a terminal is too narrow, cells that may be folded are, and else the table is wider than it.

    rich would cut cells to the width of the terminal, and of a pipe it knows no width but 80.
    """
    _keep_words(table)
    width, measured = console.width, console.measure(table, options=console.options.update_width(MAX_WIDTH))
    room = width if console.is_terminal else MAX_WIDTH
    console.width = max(measured.minimum, min(measured.maximum, room))
    if measured.maximum > room:
        _fold(table, console.width - measured.minimum)
    try:
        console.print(table, soft_wrap=False)
    finally:
        console.width = width


def _keep_words(table: Table) -> None:
    """Give each column the room that it needs: rich breaks words, and cells that must not be folded, where there is none."""
    for column in table.columns:
        column.min_width = _longest(column, "\n" if column.no_wrap else None)


def _fold(table: Table, spare: int) -> None:
    """Share out what is left of a line among the columns that may be folded, by what each would like."""
    wishes = {id(column): _longest(column, "\n") - (column.min_width or 0) for column in table.columns if not column.no_wrap}
    for column in table.columns:
        if wish := wishes.get(id(column)):
            column.width = (column.min_width or 0) + spare * wish // sum(wishes.values())


def _longest(column: Column, between: str | None) -> int:
    """Cells that the longest piece of a column takes; `between` pieces is this, or any white space."""
    return max((cell_len(piece) for cell in (column.header, *column.cells) for piece in str(cell).split(between)), default=0)


def print_prose(console: Console, text: str, *, style: str = "") -> None:
    """Print sentences in lines that are broken between words, in a pipe too: somebody may look at its end."""
    console.print(Text(between_words(text, min(console.width, LINE_WIDTH)), style=style), soft_wrap=True)


def _cells(row: RunRow) -> tuple[str, ...]:
    """A row of the table as text. A policy that drafts nothing has nothing to move, and one without a worker sends nothing but pings."""
    has_drafts = row.controller_draft_passes or row.worker_draft_passes
    return (
        row.policy,
        number(row.rtt_ms, ".0f"),
        number(row.itl_ms, ".1f"),
        number(row.itl_ratio, ".2f"),
        number(row.itl_ratio_alone, ".2f"),
        number(row.local_draft_passes_per_token, ".2f"),
        number(row.offload_fraction if has_drafts else None, "z.2f"),
        str(row.worker_draft_passes),
        number(row.bytes_per_token if row.worker_draft_passes else None, ".0f"),
        {True: "yes", False: "NO", None: "-"}[row.identical],
    )
