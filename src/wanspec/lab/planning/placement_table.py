"""The planner's answer as a table, as a sentence and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from wanspec.lab.planning.placements import OneSite, Placement
from wanspec.lab.planning.site_tables import HOURS
from wanspec.lab.records.plots import draw_matrix, new_picture, save_picture
from wanspec.lab.records.run_names import ALONE
from wanspec.lab.records.table import Column, table_of
from wanspec.lab.simulation.scenario import Policy

LEGEND = (
    "RTT: round trip in ms. ITL: ms between tokens; of alone, of chain: as a share of that of alone, which is adaptive without a worker, "
    "and of ordinary speculative decoding. local/token: draft passes that the controller makes itself, for each token. offload: share of "
    "ordinary speculative decoding's that it no longer makes. saved: seconds of the controller's device for a million tokens. money: for a "
    "million tokens, and without a worker. price, width: --price-ms, --width."
)

MANY_SITES = 16
"""From here on figures in the cells could not be read."""
FEW_CONTROLLERS = 4
"""Below this a picture is too low for a scale beside it."""
LOW, HIGH = 0.7, 1.3
"""Ends of the colours: ratios beyond look alike."""
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
    words = [
        f"{name} {figures.itl_ms:.1f} ms between tokens, with {figures.controller_draft_passes:.2f} draft passes a token"
        for name, figures in ways.items()
    ]
    device_s = home.best_outcome.controller_busy_s * 1e6
    return f"Without a worker: {'; '.join(words)}. The device works {device_s:.0f} s for a million tokens."


def hour_ranges(hours: Sequence[int]) -> str:
    """0-5, 22-23."""
    starts = [hour for hour in hours if hour - 1 not in hours]
    ends = [hour for hour in hours if hour + 1 not in hours]
    return ", ".join(f"{start}-{end}" if end > start else f"{start}" for start, end in zip(starts, ends, strict=True)) or "-"


def plot_placements(placements: Sequence[Placement], path: Path, *, title: str) -> None:
    """Controllers against workers: the colour is latency in relation to the site without a worker, a frame marks what pays.

    Sites stand by their names, or of a single controller, by their distance from it.
    """
    controllers = list(dict.fromkeys(sorted(placement.controller for placement in placements)))
    is_single = len(controllers) == 1
    in_order = sorted(placements, key=lambda each: (each.rtt_ms, each.worker) if is_single else (0.0, each.worker))
    workers = list(dict.fromkeys(placement.worker for placement in in_order))
    ratios = np.full((len(controllers), len(workers)), np.nan)
    size = 0.85 if len(workers) <= MANY_SITES else 0.32
    figure = new_picture(3.6 + size * len(workers), (3.2 if len(controllers) < FEW_CONTROLLERS else 2.4) + 0.75 * size * len(controllers))
    axes = figure.subplots()
    is_readable = len(workers) <= MANY_SITES
    frames, words = {}, {}
    for each in placements:
        cell = row, column = controllers.index(each.controller), workers.index(each.worker)
        ratios[row, column] = each.itl_ratio
        if each.pays:
            frames[cell] = "black"
        if is_readable:
            text = f"{each.itl_ratio:.2f}\n{each.offload_fraction:.0%}\n{each.rtt_ms:.0f} ms"
            words[cell] = (text, "black" if each.pays else "#555753")
    look = {"cmap": "RdYlGn_r", "vmin": LOW, "vmax": HIGH}
    image = draw_matrix(axes, ratios.tolist(), rows=controllers, columns=workers, frames=frames, words=words, **look)
    axes.set_xlabel("worker in")
    axes.set_ylabel("controller in")
    axes.set_facecolor("#eeeeec")
    side = "bottom" if len(controllers) < FEW_CONTROLLERS else "right"  # its title needs the room
    figure.colorbar(image, ax=axes, label="inter-token latency / the best without a worker", shrink=0.8, location=side)
    cells = "; in each cell: that ratio, draft passes moved, round trip" if is_readable else ""
    axes.set_title(f"{title}\nframed: it pays{cells}", fontsize=9)
    save_picture(figure, path)
