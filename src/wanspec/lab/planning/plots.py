"""The planner's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wanspec.lab.planning.placements import Placement
from wanspec.lab.records.picture import new_picture, save_picture

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
    from matplotlib.patches import Rectangle  # noqa: PLC0415  # as in `new_picture`

    controllers = list(dict.fromkeys(sorted(placement.controller for placement in placements)))
    is_single = len(controllers) == 1
    in_order = sorted(placements, key=lambda each: (each.rtt_ms, each.worker) if is_single else (0.0, each.worker))
    workers = list(dict.fromkeys(placement.worker for placement in in_order))
    ratios = np.full((len(controllers), len(workers)), np.nan)
    size = 0.85 if len(workers) <= MANY_SITES else 0.32
    figure = new_picture(3.6 + size * len(workers), (3.2 if len(controllers) < FEW_CONTROLLERS else 2.4) + 0.75 * size * len(controllers))
    axes = figure.subplots()
    for each in placements:
        row, column = controllers.index(each.controller), workers.index(each.worker)
        ratios[row, column] = each.itl_ratio
        if each.pays:
            axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="black", linewidth=1.6))
        if len(workers) <= MANY_SITES:
            words = f"{each.itl_ratio:.2f}\n{each.offload_fraction:.0%}\n{each.rtt_ms:.0f} ms"
            axes.text(column, row, words, ha="center", va="center", fontsize=6.5, color="black" if each.pays else "#555753")
    image = axes.imshow(ratios, cmap="RdYlGn_r", vmin=LOW, vmax=HIGH, aspect="auto")
    axes.set_xticks(range(len(workers)), workers, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(controllers)), controllers, fontsize=8)
    axes.set_xlabel("worker in")
    axes.set_ylabel("controller in")
    axes.set_facecolor("#eeeeec")
    side = "bottom" if len(controllers) < FEW_CONTROLLERS else "right"  # its title needs the room
    figure.colorbar(image, ax=axes, label="inter-token latency / the best without a worker", shrink=0.8, location=side)
    told = "; in each cell: that ratio, draft passes moved, round trip" if len(workers) <= MANY_SITES else ""
    axes.set_title(f"{title}\nframed: it pays{told}", fontsize=9)
    save_picture(figure, path)
