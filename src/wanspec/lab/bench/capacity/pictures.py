"""Throughput against inter-token latency, as people buy capacity: a curve for each policy, a point for each number of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanspec.lab.bench.capacity.cells import ONE_SITE, WITH_WORKERS
from wanspec.lab.bench.capacity.rows import CapacityRow
from wanspec.lab.records.plots import BLUE, COLORS, GREEN, GREY, ORANGE, RED, name_axes, new_picture, save_picture
from wanspec.lab.records.table import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS: Mapping[str, Mapping[str, Any]] = {
    "autoregressive": {"color": GREY, "label": "plain decoding"},
    "chain": {"color": COLORS[7], "label": "best chain"},
    "tree": {"color": GREEN, "label": "best tree"},
    "alone": {"color": BLUE, "label": "alone (adaptive without a worker)"},
    "adaptive-10": {"color": ORANGE, "label": "adaptive, price 10 ms", "linewidth": 2.2},
    "adaptive-inf": {"color": RED, "label": "adaptive, price inf", "linewidth": 2.2},
}
LABEL_PLACES: Mapping[bool, Mapping[str, Any]] = {
    False: {"xytext": (5, 0), "ha": "left", "va": "center"},
    True: {"xytext": (-4, 2), "ha": "right", "va": "bottom"},
}
"""Of the numbers of users, in points from their own: with workers above on the left, without on the right."""
PANEL = (4.0, 3.4)
"""Inches."""


def plot_capacity(rows: Sequence[CapacityRow], path: Path, *, title: str) -> None:
    """A panel for each number of workers and round trip; what has no worker is the same in all. Raises ConfigError."""
    workers = sorted({row.workers for row in rows if row.workers}) or [0]
    rtts_ms: Sequence[float | None] = sorted({row.rtt_ms for row in rows if row.rtt_ms is not None}) or [None]
    figure = new_picture(1.0 + PANEL[0] * len(rtts_ms), 1.0 + PANEL[1] * len(workers))
    panels = figure.subplots(len(workers), len(rtts_ms), squeeze=False, sharex=True, sharey=True)
    for number, own in zip(workers, panels, strict=True):
        for rtt_ms, axes in zip(rtts_ms, own, strict=True):
            _draw(axes, rows, number, rtt_ms)
            where = f"{counted(number, 'worker')}, {rtt_ms:g} ms" if number else ""
            name_axes(axes, "ITL p50 (ms)" if number == workers[-1] else "", "tokens/s" if rtt_ms == rtts_ms[0] else "", title=where)
    panels[0][0].set_xlim(left=0.0)  # which all share, and which what is drawn later would no longer move
    panels[0][0].set_ylim(bottom=0.0)
    figure.suptitle(f"{title}\nnumbers beside points: users; up and to the left is better", fontsize=9)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    save_picture(figure, path)


def _draw(axes: Axes, rows: Sequence[CapacityRow], workers: int, rtt_ms: float | None) -> None:
    for policy in (*ONE_SITE, *WITH_WORKERS):
        place = (workers, rtt_ms) if policy in WITH_WORKERS else (0, None)
        own = sorted([row for row in rows if row.policy == policy and (row.workers, row.rtt_ms) == place], key=lambda row: row.users)
        if not own:
            continue
        look = LOOKS[policy]
        axes.plot([row.itl_ms_p50 for row in own], [row.tokens_per_s for row in own], marker=".", **look)
        for row in own:
            label = {"textcoords": "offset points", "fontsize": 7, "color": look["color"], **LABEL_PLACES[policy in WITH_WORKERS]}
            axes.annotate(str(row.users), (row.itl_ms_p50, row.tokens_per_s), **label)
    axes.margins(x=0.08)  # a label has room
