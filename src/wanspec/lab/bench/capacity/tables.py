"""How capacity looks on a terminal: the table, how to read it, what it comes to in words, and what speaks against it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from wanspec.lab.bench.capacity.cells import REQUESTS, WITH_WORKERS, CapacityConfig, words_of
from wanspec.lab.bench.capacity.rows import CapacityRow, best_of_site, of_best
from wanspec.lab.bench.demo import LATE_MEANING, LATE_SHARE
from wanspec.lab.records.table import Column, counted, print_prose, print_table, print_warnings, table_of

COLUMNS = (
    Column("users", lambda pair: pair[0].users),
    Column("policy", lambda pair: pair[0].policy, side="left"),
    Column("wor-\nkers", lambda pair: pair[0].workers or None),
    Column("RTT\nms", lambda pair: pair[0].rtt_ms, "g"),
    Column("tok/s", lambda pair: pair[0].tokens_per_s, ".0f"),
    Column("of the\nbest", lambda pair: pair[1], ".2f"),
    Column("ITL\np50", lambda pair: pair[0].itl_ms_p50, ".1f"),
    Column("\np95", lambda pair: pair[0].itl_ms_p95, ".1f"),
    Column("TTFT\nms", lambda pair: pair[0].ttft_ms, ".0f"),
    Column("device\nms/tok", lambda pair: 1e3 * pair[0].device_s_per_token, ".2f"),
    Column("local/\ntok", lambda pair: pair[0].local_passes_per_token, ".3f"),
    Column("setting", lambda pair: words_of(pair[0].settings), side="left"),
)
"""Of pairs of a row and its throughput as a share of the best that one site does."""
LEGEND = (
    "tok/s: over all users, while all of them have requests in progress; of the best: as a share of the best of plain decoding, chain, "
    "tree and alone (adaptive without a worker) with as many users. ITL: ms between tokens, percentiles over all tokens; tokens that come "
    "together share the gap before them. device: time of the controller's device. local: the controller's own draft passes, one over many "
    "users counted once. chain, tree: the best that was found, deep or deep x wide. adaptive-10, -inf: at these prices of a local pass, ms."
)


def show_capacity(console: Console, rows: Sequence[CapacityRow], *, title: str) -> None:
    """All that there is to say."""
    if not rows:
        print_prose(console, "nothing was measured", style="yellow")
        return
    print_table(console, table_of([(row, of_best(row, rows)) for row in rows], COLUMNS, title=title))
    print_prose(console, LEGEND, style="dim")
    console.print()
    for line in verdict(rows):
        print_prose(console, line)
    print_warnings(console, warnings(rows))


def title_of(config: CapacityConfig, rows: Sequence[CapacityRow]) -> str:
    """What was done."""
    load = config.base.load
    clock = "real processes" if any(row.clock == "real" for row in rows) else "virtual clock"
    own_code = "" if all(row.own_code for row in rows) else ", our own code taking no time"
    return f"{config.base.compute.preset}, each user sends {REQUESTS} requests or more of {load.tokens} tokens, {clock}{own_code}"


def verdict(rows: Sequence[CapacityRow]) -> list[str]:
    """What workers add, in words: a line for each number of users."""
    lines = []
    for users in dict.fromkeys(row.users for row in rows):
        best = best_of_site(rows, users)
        own = [row for row in rows if row.users == users and row.policy in WITH_WORKERS]
        if best is not None and own:
            most = max(own, key=lambda row: row.tokens_per_s)
            lines.append(
                f"{counted(users, 'user')}: {best.tokens_per_s:.0f} tokens a second without a worker ({best.policy}), "
                f"{most.tokens_per_s:.0f} with {counted(most.workers, 'worker')} {most.rtt_ms:g} ms away ({most.policy}): "
                f"{most.tokens_per_s / best.tokens_per_s:.2f} times."
            )
    return [*lines, "Every text of these runs equals plain target decoding."]


def warnings(rows: Sequence[CapacityRow]) -> list[str]:
    """What speaks against the figures."""
    late = [row for row in rows if (row.late_share or 0.0) > LATE_SHARE]
    if not late:
        return []
    worst = max(row.late_share or 0.0 for row in late)
    names = ", ".join(dict.fromkeys(f"{row.policy} with {counted(row.users, 'user')}" for row in late))
    why = "this machine is too busy or too slow for the preset's step times"
    return [f"up to {worst:.0%} of the controller's passes were late ({names}): {why}. {LATE_MEANING}"]
