"""How a load looks on a terminal: what became of the requests, what users saw, how the server fared, and what it comes to in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from wanspec.lab.bench.load.level_figures import LevelRow
from wanspec.lab.bench.load.levels import LoadConfig, OwnServer
from wanspec.lab.records.table import Column, counted, print_prose, print_table, print_warnings, table_of

MEGABYTE = 1e6
SHOWN_FAILURES = 5


def _percentiles(heading: str, name: str, form: str) -> tuple[Column, ...]:
    """p50, p90 and p99 of a row's field."""
    headings = (f"{heading}\np50", "\np90", "\np99")
    return tuple([Column(own, lambda row, at=at: (getattr(row, name) or NONE)[at], form) for at, own in enumerate(headings)])  # type: ignore[misc]


def _trend(heading: str, name: str, unit: float, form: str) -> tuple[Column, ...]:
    """How a row's field has gone: first, last, most, and its slope."""

    def part(of: str) -> Callable[[LevelRow], float | None]:
        return lambda row: None if (value := getattr(getattr(row, name), of, None)) is None else value / unit

    figures = [Column(f"{heading}\n{of}" if of == "first" else f"\n{of}", part(of), form) for of in ("first", "last", "most")]
    return (*figures, Column("\nper hour", part("slope_per_hour"), "+.1f"))


NONE = (None, None, None)
LOAD = (Column("load", lambda row: row.load, side="left"), Column("wor-\nkers", lambda row: row.workers))
COUNTS = (
    *LOAD,
    Column("sent", lambda row: row.sent),
    Column("fini-\nshed", lambda row: row.finished),
    Column("re-\nfused", lambda row: row.refused),
    Column("fai-\nled", lambda row: row.failed),
    Column("kills", lambda row: row.kills),
    Column("exact", lambda row: {True: "yes", False: "NO", None: None}[row.exact]),
    Column("void", lambda row: None if row.void is None else "VOID"),
    Column("req/s", lambda row: row.requests_per_s, ".2f"),
    Column("tok/s", lambda row: row.tokens_per_s, ".1f"),
    Column("drafts/\ntoken", lambda row: row.local_drafts_per_token, ".2f"),
    Column("tok/\nround", lambda row: row.tokens_per_round, ".2f"),
)
"""They fit a terminal of 80 columns."""
LATENCIES = (
    *LOAD,
    *_percentiles("TTFT", "ttft_ms", ".0f"),
    *_percentiles("ITL", "itl_ms", ".1f"),
    Column("gap\np99", lambda row: (row.gap_ms or NONE)[2], ".0f"),
    Column("starva-\ntion", lambda row: row.starvation, ".2f"),
    Column("late\nms", lambda row: row.lateness_ms_p99, ".1f"),
)
VITALS = (*LOAD, *_trend("RSS MB", "rss_bytes", MEGABYTE, ".1f"), *_trend("open", "descriptors", 1.0, ".0f"))
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
    print_table(console, table_of(rows, COUNTS, title=title_of(config)))
    print_table(console, table_of(rows, LATENCIES, title="what users see, ms"))
    if any(row.rss_bytes is not None for row in rows):
        print_table(console, table_of(rows, VITALS, title="how the server fares"))
    print_prose(console, LEGEND, style="dim")
    console.print()
    print_prose(console, verdict(rows))
    print_warnings(console, warnings(rows))


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
