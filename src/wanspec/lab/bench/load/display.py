"""How a load looks on a terminal: what became of the requests, what users saw, how the server fared, and what it comes to in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from wanspec.lab.bench.load.plan import LoadConfig, OwnServer
from wanspec.lab.bench.load.rows import LevelRow, Percentiles
from wanspec.lab.bench.load.vitals import Trend
from wanspec.lab.records.table import compact_table, counted, number, print_prose, print_table

COUNTS = (
    "wor-\nkers", "sent", "fini-\nshed", "re-\nfused", "fai-\nled", "kills", "exact", "void", "req/s", "tok/s", "drafts/\ntoken",
    "tok/\nround",
)  # fmt: skip
"""Beside the load; they fit a terminal of 80 columns."""
LATENCIES = ("wor-\nkers", "TTFT\np50", "\np90", "\np99", "ITL\np50", "\np90", "\np99", "gap\np99", "starva-\ntion", "late\nms")
VITALS = ("wor-\nkers", "RSS MB\nfirst", "\nlast", "\nmost", "\nper hour", "open\nfirst", "\nlast", "\nmost", "\nper hour")
MEGABYTE = 1e6
SHOWN_FAILURES = 5
LEGEND = (
    "req/s, tok/s: answered while requests were sent. drafts/token: the controller's own draft passes. TTFT, ITL, gap in "
    "ms, as clients see them: TTFT from when a request was due; tokens of one event share the gap before it. starvation: "
    "p99 / median of the requests' mean ITL, 1 where all are served alike. late: of the load generator, p99. void: figures "
    "left out, since the generator or the emulated link was late. RSS, open: the server's memory and file descriptors; "
    "per hour: slope of the later half, where it has samples enough."
)


def show_load(console: Console, config: LoadConfig, rows: Sequence[LevelRow]) -> None:
    """All that there is to say."""
    if not rows:
        print_prose(console, "nothing was measured", style="yellow")
        return
    print_table(console, _table(COUNTS, rows, [_counts(row) for row in rows], title=title_of(config)))
    print_table(console, _table(LATENCIES, rows, [_latencies(row) for row in rows], title="what users see, ms"))
    if any(row.rss_bytes is not None for row in rows):
        print_table(console, _table(VITALS, rows, [_vitals(row) for row in rows], title="how the server fares"))
    print_prose(console, LEGEND, style="dim")
    console.print()
    print_prose(console, verdict(rows))
    for warning in warnings(rows):
        print_prose(console, f"warning: {warning}", style="yellow")


def title_of(config: LoadConfig) -> str:
    """What was done."""
    server = config.server
    what = f"{counted(len(config.prompts), 'prompt')}, {config.max_tokens} tokens, {config.duration_s:g} s a level"
    if not isinstance(server, OwnServer):
        return f"{server.model}, {what}"
    pace = f"{server.preset} step times" if server.preset else "no pace"
    kills = f", a worker killed every {server.kill_every_s:g} s" if server.kill_every_s is not None else ""
    return f"{what}, {pace}, {server.rtt_ms:g} ms, {server.emulator}{kills}"


def verdict(rows: Sequence[LevelRow]) -> str:
    """On exactness, in words."""
    wrong = [f"{row.load}, {complaint}" for row in rows for complaint in row.wrong]
    if wrong:
        return "\n".join([f"NOT the target's text, {len(wrong)} times; this is a bug:", *wrong[:SHOWN_FAILURES]])
    if all(row.exact is None for row in rows):
        return "Not compared with plain target decoding."
    number = sum(row.finished for row in rows if row.exact)
    return f"exact: all {number} texts equal plain target decoding, as does what came of the others."


def warnings(rows: Sequence[LevelRow]) -> list[str]:
    """What a person should know of failures and void levels."""
    found = [f"{row.load} is void: {row.void}" for row in rows if row.void is not None]
    failed = [row for row in rows if row.failures]
    return [*found, *[f"{row.load}: {row.failed} failed; {'; '.join(row.failures[:SHOWN_FAILURES])}" for row in failed]]


def _table(headings: Sequence[str], rows: Sequence[LevelRow], cells: Iterable[Sequence[str]], *, title: str) -> Table:
    table = compact_table("load", headings, title=title)
    for row, own in zip(rows, cells, strict=True):
        table.add_row(row.load, "-" if row.workers is None else str(row.workers), *own)
    return table


def _counts(row: LevelRow) -> list[str]:
    exact = {True: "yes", False: "NO", None: "-"}[row.exact]
    counts = [str(count) for count in (row.sent, row.finished, row.refused, row.failed, row.kills)]
    figures = (row.requests_per_s, row.tokens_per_s, row.local_drafts_per_token, row.tokens_per_round)
    forms = (".2f", ".1f", ".2f", ".2f")
    return [
        *counts,
        exact,
        "-" if row.void is None else "VOID",
        *[number(value, form) for value, form in zip(figures, forms, strict=True)],
    ]


def _latencies(row: LevelRow) -> list[str]:
    gap_ms = row.gap_ms[2] if row.gap_ms else None
    return [
        *_percentiles(row.ttft_ms, ".0f"),
        *_percentiles(row.itl_ms, ".1f"),
        number(gap_ms, ".0f"),
        number(row.starvation, ".2f"),
        number(row.lateness_ms_p99, ".1f"),
    ]


def _vitals(row: LevelRow) -> list[str]:
    return [*_trend(row.rss_bytes, MEGABYTE, ".1f"), *_trend(row.descriptors, 1.0, ".0f")]


def _trend(trend: Trend | None, unit: float, form: str) -> list[str]:
    if trend is None:
        return ["-"] * 4
    slope = None if trend.slope_per_hour is None else trend.slope_per_hour / unit
    return [*[format(value / unit, form) for value in (trend.first, trend.last, trend.most)], number(slope, "+.1f")]


def _percentiles(values: Percentiles | None, form: str) -> list[str]:
    return ["-"] * 3 if values is None else [format(value, form) for value in values]
