"""The screen of a running campaign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from wanspec.lab.measurement.rtt import Link
from wanspec.lab.records.table import compact_table, number

if TYPE_CHECKING:
    from wanspec.lab.measurement.runner import Runner  # with httpx, which round trips do without

HEADINGS = ("under\nway", "ok", "thrott-\nled", "failed", "missed", "connect\nms p50", "TTFT\nms p50", "\np90", "\np99")
MAX_PROBLEM_CHARACTERS = 100
"""Of the newest problem of each target."""


def live_table(runner: Runner) -> Group:
    """What has been measured so far."""
    table = compact_table("target", HEADINGS, title=title_of(runner))
    for name, tally in runner.tallies.items():
        counts = (tally.under_way, tally.ok, tally.throttled, tally.failed, tally.missed)
        figures = (tally.connect_ms(), *(tally.ttft_ms(share) for share in (0.5, 0.9, 0.99)))
        table.add_row(name, *(str(count) for count in counts), *(number(value, ".0f") for value in figures))
    problems = [
        Text(f"{name}: {tally.last_problem}"[:MAX_PROBLEM_CHARACTERS], style="yellow")
        for name, tally in runner.tallies.items()
        if tally.last_problem
    ]
    return Group(
        table, Text(status_of(runner), style="dim"), *problems, *([Text(trouble_of(runner), style="red")] if trouble_of(runner) else [])
    )


def mesh_table(links: Sequence[Link]) -> Table:
    """Round trips between sites."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title="time to connect, ms")
    for heading in ("from", "to"):
        table.add_column(heading, no_wrap=True)
    for heading in ("n", "failed", "least", "p50", "p90", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    for link in links:
        figures = (link.least_ms, link.p50_ms, link.p90_ms, link.p99_ms)
        times = ("-" if math.isnan(value) else f"{value:.1f}" for value in figures)
        table.add_row(Text(link.probe), Text(link.peer), str(link.n), str(link.failed), *times)
    return table


def title_of(runner: Runner) -> str:
    """What is done."""
    return f"{runner.campaign.name} from {runner.probe.name}"


def status_of(runner: Runner) -> str:
    """Where it is, and what it has taken."""
    spent, now_s = runner.budget.spent, runner.clock.wall_s()
    round_ = f"{min(runner.round + 1, runner.rounds)} of {runner.rounds}" if runner.rounds else runner.round + 1
    waiting = f"begins at {_time(runner.start_s)} UTC" if now_s < runner.start_s else f"round {round_}"
    money = f", {spent.usd:.4f} USD" if spent.usd else ""
    return f"{waiting}; {spent.requests} requests, {spent.tokens} tokens{money}; the file has {runner.resumed} requests: {runner.path}"


def trouble_of(runner: Runner) -> str:
    """What keeps rows from the disk."""
    journal = runner.journal
    return f"{runner.path}: {journal.trouble}; {journal.waiting} lines wait, nothing is sent" if journal and journal.trouble else ""


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%H:%M:%S")
