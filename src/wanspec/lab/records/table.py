"""Runs set side by side, as a table on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Column as RichColumn
from rich.table import Table
from rich.text import Text

from wanspec.lab.records.metrics import RunRow
from wanspec.terminal import between_words

T = TypeVar("T")


class Column(NamedTuple):
    """One column of a table: a row's figure under a heading."""

    heading: str
    of: Callable[[Any], object]
    """From a row; None: a dash."""
    form: str = ""
    """How it is formatted."""
    side: Literal["left", "right"] = "right"
    """Words stand on the left and may be folded, figures on the right and never are."""


RUN_COLUMNS = (
    Column("RTT\nms", lambda row: row.rtt_ms, ".0f"),
    Column("ITL\nms", lambda row: row.itl_ms, ".1f"),
    Column("of the\nchain", lambda row: row.itl_ratio, ".2f"),
    Column("of\nalone", lambda row: row.itl_ratio_alone, ".2f"),
    Column("local/\ntoken", lambda row: row.local_draft_passes_per_token, ".2f"),
    # a policy that drafts nothing has nothing to move, and one without a worker sends nothing but pings
    Column("off-\nload", lambda row: row.offload_fraction if row.controller_draft_passes or row.worker_draft_passes else None, "z.2f"),
    Column("worker\ndrafts", lambda row: row.worker_draft_passes),
    Column("bytes/\ntoken", lambda row: row.bytes_per_token if row.worker_draft_passes else None, ".0f"),
    Column("exact", lambda row: {True: "yes", False: "NO", None: None}[row.identical]),
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


def table_of(
    rows: Iterable[T], columns: Iterable[Column], *, title: str, padding: int = 0, dims: Callable[[T], bool] = lambda _: False
) -> Table:
    """A line for each row; `dims`: whether a row is printed in grey."""
    columns = list(columns)
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, padding), pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column.heading, justify=column.side, no_wrap=column.side == "right")
    for row in rows:
        cells = [number(column.of(row), column.form) for column in columns]
        table.add_row(*map(escape, cells), style="dim" if dims(row) else None)
    return table


def run_table(rows: Sequence[RunRow], *, title: str, points: Sequence[Mapping[str, object]] = ()) -> Table:
    """One line a row; `points`: for each row the values of further parameters, which get columns of their own."""
    names = list(dict.fromkeys(name for point in points for name in point))
    headings = [name.rpartition(".")[2].replace("_", "_\n") for name in names]
    parameters = [Column(heading, lambda pair, name=name: pair[1].get(name)) for heading, name in zip(headings, names, strict=True)]  # type: ignore[misc]
    figures = [Column(column.heading, lambda pair, of=column.of: of(pair[0]), column.form) for column in RUN_COLUMNS]  # type: ignore[misc]
    columns = [Column("policy", lambda pair: pair[0].policy, side="left"), *parameters, *figures]
    return table_of(zip(rows, points or [{}] * len(rows), strict=True), columns, title=title, padding=0 if parameters else 1)


def counted(number: int, what: str) -> str:
    """A number of things: 1 probe, 2 probes."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def number(value: object, form: str) -> str:
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


def _longest(column: RichColumn, between: str | None) -> int:
    """Cells that the longest piece of a column takes; `between` pieces is this, or any white space."""
    return max((cell_len(piece) for cell in (column.header, *column.cells) for piece in str(cell).split(between)), default=0)


def print_warnings(console: Console, warnings: Iterable[str]) -> None:
    """Each in lines of its own, in yellow."""
    for warning in warnings:
        print_prose(console, f"warning: {warning}", style="yellow")


def print_prose(console: Console, text: str, *, style: str = "") -> None:
    """Print sentences in lines that are broken between words, in a pipe too: somebody may look at its end."""
    console.print(Text(between_words(text, min(console.width, LINE_WIDTH)), style=style), soft_wrap=True)
