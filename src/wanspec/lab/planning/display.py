"""The planner's answer on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from wanspec.lab.planning.load import HOURS
from wanspec.lab.planning.placements import OneSite, Placement
from wanspec.lab.records.run_names import ALONE
from wanspec.lab.records.table import Column, table_of
from wanspec.lab.simulation.scenario import Policy

LEGEND = (
    "RTT: round trip in ms. ITL: ms between tokens; of alone, of chain: as a share of that of alone, which is adaptive without a worker, "
    "and of ordinary speculative decoding. local/token: draft passes that the controller makes itself, for each token. offload: share of "
    "ordinary speculative decoding's that it no longer makes. saved: seconds of the controller's device for a million tokens. money: for a "
    "million tokens, and without a worker. price, width: --price-ms, --width."
)

COLUMNS = (
    Column("controller", lambda each: each.controller, side="left"),
    Column("worker", lambda each: each.worker, side="left"),
    Column("RTT", lambda each: each.rtt_ms, ".1f"),
    Column("ITL", lambda each: each.itl_ms, ".1f"),
    Column("of\nalone", lambda each: each.itl_ratio_alone, ".2f"),
    Column("of\nchain", lambda each: each.itl_ratio_to_chain, ".2f"),
    Column("local/\ntoken", lambda each: each.local_draft_passes_per_token, ".2f"),
    Column("off-\nload", lambda each: each.offload_fraction, ".2f"),
    Column("saved", lambda each: each.controller_s_saved_per_mtoken, ".0f"),
)
MONEY_COLUMNS = (
    Column("money", lambda each: each.money_per_mtoken, ".2f"),
    Column("with-\nout", lambda each: each.money_alone_per_mtoken, ".2f"),
)
SETTINGS_COLUMN = Column("settings", lambda each: settings_words(each.settings), side="left")
HOURS_COLUMN = Column("hours\nUTC", lambda each: hour_ranges(each.hours_utc), side="left")
VERDICT_COLUMN = Column("verdict", lambda each: each.verdict, side="left")


def placement_table(placements: Sequence[Placement], *, title: str) -> Table:
    """One line each. Columns that say nothing are left out."""
    has_money = any(placement.money_per_mtoken is not None for placement in placements)
    has_hours = any(len(placement.hours_utc) < HOURS for placement in placements)
    columns = [*COLUMNS, *(MONEY_COLUMNS if has_money else ()), SETTINGS_COLUMN, *((HOURS_COLUMN,) if has_hours else ()), VERDICT_COLUMN]
    return table_of(placements, columns, title=title, dims=lambda each: not each.pays)


def settings_words(policy: Policy) -> str:
    """What a policy is set to, in a few words."""
    match policy.name:
        case "adaptive":
            return f"price {policy.redundancy_price_ms:g}, width {policy.width}"
        case "colocated":
            return f"chain of {policy.k}"
        case "colocated-tree":
            return f"tree of {policy.k} levels, {policy.verify_width} verified" + (", with lookup" if policy.lookup else "")
        case "autoregressive":
            return "plain decoding"
        case "paper":
            return f"k {policy.k}, b {policy.b}, phi {policy.phi:g}"
        case name:
            return name


def one_site_words(home: OneSite) -> str:
    """What a site does without a worker, in a sentence."""
    ways = {ALONE: home.alone_outcome, settings_words(home.chain): home.chain_outcome, settings_words(home.best): home.best_outcome}
    told = [
        f"{name} {outcome.itl_ms:.1f} ms between tokens, with {outcome.controller_draft_passes:.2f} draft passes a token"
        for name, outcome in ways.items()
    ]
    device_s = home.best_outcome.controller_busy_s * 1e6
    return f"Without a worker: {'; '.join(told)}. The device works {device_s:.0f} s for a million tokens."


def hour_ranges(hours: Sequence[int]) -> str:
    """0-5, 22-23."""
    starts = [hour for hour in hours if hour - 1 not in hours]
    ends = [hour for hour in hours if hour + 1 not in hours]
    return ", ".join(f"{start}-{end}" if end > start else f"{start}" for start, end in zip(starts, ends, strict=True)) or "-"
