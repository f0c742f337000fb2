"""The planner's answer on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from wanspec.planning.load import HOURS
from wanspec.planning.placements import Alone, Placement
from wanspec.simulation.scenario import Policy
from wanspec.telemetry.table import number

LEGEND = (
    "RTT: round trip in ms. ITL: ms between tokens; of alone, of chain: as a share of that of the site without a worker, and of "
    "ordinary speculative decoding there. offload: share of ordinary speculative decoding's draft passes that leave the controller. "
    "saved: seconds of the controller's device for a million tokens. money: for a million tokens, and alone. price, width: --price-ms, "
    "--width."
)


def placement_table(placements: Sequence[Placement], *, title: str) -> Table:
    """One line each. Columns that say nothing are left out."""
    has_money = any(placement.money_per_mtoken is not None for placement in placements)
    has_hours = any(len(placement.hours_utc) < HOURS for placement in placements)
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for heading in ("controller", "worker"):
        table.add_column(heading, no_wrap=True)
    money, hours = ("money", "alone") if has_money else (), ("hours\nUTC",) if has_hours else ()
    for heading in ("RTT", "ITL", "of\nalone", "of\nchain", "off-\nload", "saved", *money, "settings", *hours, "verdict"):
        side = "left" if heading in {"settings", "hours\nUTC", "verdict"} else "right"
        table.add_column(heading, justify=side, no_wrap=side == "right")  # type: ignore[arg-type]  # a literal either way
    for each in placements:
        figures = [f"{each.rtt_ms:.1f}", f"{each.itl_ms:.1f}", f"{each.itl_ratio:.2f}", f"{each.itl_ratio_to_chain:.2f}"]
        figures += [f"{each.offload_fraction:.2f}", f"{each.controller_s_saved_per_mtoken:.0f}"]
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
        case "alone":
            return "adaptive without a worker"
        case "adaptive":
            return f"price {policy.redundancy_price_ms:g}, width {policy.width}"
        case "colocated":
            return f"chain of {policy.k}"
        case "colocated-tree":
            return f"tree of {policy.k} levels, {policy.verify_width} verified" + (", with lookup" if policy.lookup else "")
        case "autoregressive":
            return "plain decoding"
        case _:
            return f"k {policy.k}, b {policy.b}, phi {policy.phi:g}"


def alone_words(alone: Alone) -> str:
    """What a site does without a worker, in a sentence."""
    name = settings_words(alone.policy)
    return (
        f"alone: {name}, {alone.outcome.itl_ms:.1f} ms between tokens, {alone.outcome.controller_busy_s * 1e6:.0f} s of the device for a "
        f"million; ordinary speculative decoding ({settings_words(alone.chain)}): {alone.chain_outcome.itl_ms:.1f} ms"
    )


def hour_ranges(hours: Sequence[int]) -> str:
    """0-5, 22-23."""
    starts = [hour for hour in hours if hour - 1 not in hours]
    ends = [hour for hour in hours if hour + 1 not in hours]
    return ", ".join(f"{start}-{end}" if end > start else f"{start}" for start, end in zip(starts, ends, strict=True)) or "-"
