"""The planner's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wanspec.lab.planning.fleet_figures import SiteFigures
from wanspec.lab.planning.load import HOURS
from wanspec.lab.planning.placements import Placement
from wanspec.lab.records.plots import GREEN, LIGHT_GREY, RED, draw_line, draw_matrix, name_axes, new_picture, save_picture

MANY_SITES = 16
"""From here on figures in the cells could not be read."""
FEW_CONTROLLERS = 4
"""Below this a picture is too low for a scale beside it."""
LOW, HIGH = 0.7, 1.3
"""Ends of the colours: ratios beyond look alike."""


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


def plot_fleet(home: Sequence[SiteFigures], lent: Sequence[SiteFigures], path: Path, *, title: str) -> None:
    """A column for each site: requests by hour above, with those drafted for elsewhere; p95 of TTFT below, in both ways."""
    hours = range(HOURS)
    figure = new_picture(1.0 + 3.4 * len(home), 5.6)
    above, below = figure.subplots(2, len(home), sharex=True, sharey="row", squeeze=False)
    for column, (before, after) in enumerate(zip(home, lent, strict=True)):
        load, ttft = above[column], below[column]
        load.bar(hours, before.requests_by_hour, color=LIGHT_GREY, label="requests")
        load.bar(hours, after.away_by_hour, color=GREEN, alpha=0.6, label="drafted for elsewhere")
        draw_line(ttft, [(hour, s, None) for hour, s in enumerate(before.ttft_s_p95_by_hour)], color=RED, label="drafting at home")
        draw_line(ttft, [(hour, s, None) for hour, s in enumerate(after.ttft_s_p95_by_hour)], color=GREEN, label="with lent draft devices")
        ttft.set_yscale("log")
        name_axes(load, y="" if column else "requests in the hour", title=before.site)
        name_axes(ttft, "hour (UTC)", "" if column else "time to first token, p95 (s)")
    above[0].legend(fontsize=7)
    below[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    save_picture(figure, path)
