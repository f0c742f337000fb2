"""A plot of a load: throughput and latencies against users or rate, a line for each number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wanspec.lab.bench.load.level_figures import LevelRow
from wanspec.lab.records.plots import COLORS, draw_line, name_axes, new_picture, save_picture

STYLES: Final = (("p50", "-"), ("p90", "--"), ("p99", ":"))
KINDS: Final = {"users": "users", "rate_per_s": "requests per second"}
"""What a load may be, by a row's field, and in words."""


def plot_load(rows: Sequence[LevelRow], path: Path, *, title: str) -> None:
    """Throughput, TTFT and ITL; users and rates side by side where there are both. Void levels are left out. Raises ConfigError."""
    valid = [row for row in rows if row.void is None]
    kinds = [kind for kind in KINDS if any(getattr(row, kind) is not None for row in valid)]
    figure = new_picture(1.0 + 5.0 * max(1, len(kinds)), 9.0)
    for column, kind in enumerate(kinds):
        throughput, ttft, itl = [figure.add_subplot(3, len(kinds), 1 + column + place * len(kinds)) for place in range(3)]
        for workers in dict.fromkeys(row.workers for row in valid):
            own = [(getattr(row, kind), row) for row in valid if row.workers == workers]
            who, color = "" if workers is None else f"{workers} worker{'s' * (workers != 1)}", COLORS[(workers or 0) % len(COLORS)]
            draw_line(throughput, [(load, row.tokens_per_s, None) for load, row in own], color=color, label=who or None)
            for place, (name, style) in enumerate(STYLES):
                look = {"color": color, "linestyle": style, "label": f"{who} {name}".strip()}
                draw_line(ttft, [(load, row.ttft_ms[place] if row.ttft_ms else None, None) for load, row in own], **look)
                draw_line(itl, [(load, row.itl_ms[place] if row.itl_ms else None, None) for load, row in own], **look)
        for axes, label in ((throughput, "tokens/s"), (ttft, "time to first token (ms)"), (itl, "inter-token latency (ms)")):
            name_axes(axes, KINDS[kind] if axes is itl else "", label)
            axes.set_ylim(bottom=0.0)
        throughput.legend(fontsize=8)
        ttft.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    save_picture(figure, path)
