"""The planner's answer on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from wanspec.lab.planning.load import HOURS
from wanspec.lab.planning.placements import OneSite, Placement
from wanspec.lab.records.run_names import ALONE
from wanspec.lab.records.table import number
from wanspec.lab.simulation.scenario import Policy

LEGEND = (
    "RTT: round trip in ms. ITL: ms between tokens; of alone, of chain: as a share of that of alone, which is adaptive without a worker, "
    "and of ordinary speculative decoding. local/token: draft passes that the controller makes itself, for each token. offload: share of "
    "ordinary speculative decoding's that it no longer makes. saved: seconds of the controller's device for a million tokens. money: for a "
    "million tokens, and without a worker. price, width: --price-ms, --width."
)


def placement_table(placements: Sequence[Placement], *, title: str) -> Table:
    """One line each. Columns that say nothing are left out."""
    has_money = any(placement.money_per_mtoken is not None for placement in placements)
    has_hours = any(len(placement.hours_utc) < HOURS for placement in placements)
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for heading in ("controller", "worker"):
        table.add_column(heading, no_wrap=True)
    money, hours = ("money", "with-\nout") if has_money else (), ("hours\nUTC",) if has_hours else ()
    for heading in ("RTT", "ITL", "of\nalone", "of\nchain", "local/\ntoken", "off-\nload", "saved", *money, "settings", *hours, "verdict"):
        side = "left" if heading in {"settings", "hours\nUTC", "verdict"} else "right"
        table.add_column(heading, justify=side, no_wrap=side == "right")  # type: ignore[arg-type]  # a literal either way
    for each in placements:
        figures = [f"{each.rtt_ms:.1f}", f"{each.itl_ms:.1f}", f"{each.itl_ratio_alone:.2f}", f"{each.itl_ratio_to_chain:.2f}"]
        figures += [f"{each.local_draft_passes_per_token:.2f}", f"{each.offload_fraction:.2f}", f"{each.controller_s_saved_per_mtoken:.0f}"]
        if has_money:
            figures += [number(value, ".2f") for value in (each.money_per_mtoken, each.money_alone_per_mtoken)]
        figures.append(settings_words(each.settings))
        if has_hours:
            figures.append(hour_ranges(each.hours_utc))
        table.add_row(each.controller, each.worker, *figures, each.verdict, style=None if each.pays else "dim")
    return table


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
