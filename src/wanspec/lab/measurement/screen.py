"""The screen of a running campaign."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from wanspec.lab.measurement.rtt import PairRtt
from wanspec.lab.records.table import Column, table_of

if TYPE_CHECKING:
    from wanspec.lab.measurement.runner import Runner  # with httpx, which round trips do without

TALLY_COLUMNS = (
    Column("target", lambda pair: pair[0], side="left"),
    Column("under\nway", lambda pair: pair[1].under_way),
    Column("ok", lambda pair: pair[1].ok),
    Column("thrott-\nled", lambda pair: pair[1].throttled),
    Column("failed", lambda pair: pair[1].failed),
    Column("missed", lambda pair: pair[1].missed),
    Column("connect\nms p50", lambda pair: pair[1].connect_ms(), ".0f"),
    Column("TTFT\nms p50", lambda pair: pair[1].ttft_ms(0.5), ".0f"),
    Column("\np90", lambda pair: pair[1].ttft_ms(0.9), ".0f"),
    Column("\np99", lambda pair: pair[1].ttft_ms(0.99), ".0f"),
)
RTT_COLUMNS = (
    Column("from", lambda pair: pair.probe, side="left"),
    Column("to", lambda pair: pair.peer, side="left"),
    Column("n", lambda pair: pair.n),
    Column("failed", lambda pair: pair.failed),
    Column("least", lambda pair: pair.least_ms, ".1f"),
    Column("p50", lambda pair: pair.p50_ms, ".1f"),
    Column("p90", lambda pair: pair.p90_ms, ".1f"),
    Column("p99", lambda pair: pair.p99_ms, ".1f"),
)
MAX_PROBLEM_CHARACTERS = 100
"""Of the newest problem of each target."""


def live_table(runner: Runner) -> Group:
    """What has been measured so far."""
    table = table_of(runner.tallies.items(), TALLY_COLUMNS, title=title_of(runner))
    problems = [
        Text(f"{name}: {tally.last_problem}"[:MAX_PROBLEM_CHARACTERS], style="yellow")
        for name, tally in runner.tallies.items()
        if tally.last_problem
    ]
    return Group(
        table, Text(status_of(runner), style="dim"), *problems, *([Text(trouble_of(runner), style="red")] if trouble_of(runner) else [])
    )


def rtt_table(pairs: Sequence[PairRtt]) -> Table:
    """Round trips between sites."""
    return table_of(pairs, RTT_COLUMNS, title="time to connect, ms", padding=1)


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
