"""A picture of a load: throughput and latencies against users or rate, a line for each number of workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wanspec.lab.bench.load.rows import LevelRow
from wanspec.lab.records.picture import new_picture, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS: Final = ("#888a85", "#204a87", "#4e9a06", "#f57900", "#5c3566", "#c4a000", "#a40000", "#8f5902")
"""Of 0 workers, 1, 2, ...; then again from the start."""
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
            own = [(load, row) for row in valid if row.workers == workers and (load := getattr(row, kind)) is not None]
            own.sort(key=lambda each: each[0])
            _draw(throughput, own, workers, "", "-", lambda row: row.tokens_per_s)
            for place, (label, style) in enumerate(STYLES):
                _draw(ttft, own, workers, label, style, lambda row, place=place: row.ttft_ms and row.ttft_ms[place])  # type: ignore[misc]
                _draw(itl, own, workers, label, style, lambda row, place=place: row.itl_ms and row.itl_ms[place])  # type: ignore[misc]
        for axes, label in ((throughput, "tokens/s"), (ttft, "time to first token (ms)"), (itl, "inter-token latency (ms)")):
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0.0)
        itl.set_xlabel(KINDS[kind])
        throughput.legend(fontsize=8)
        ttft.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    save_picture(figure, path)


def _draw(
    axes: Axes, own: Sequence[tuple[float, LevelRow]], workers: int | None, label: str, style: str,
    figure_of: Callable[[LevelRow], float | None],
) -> None:  # fmt: skip
    """One line."""
    points = [(load, value) for load, row in own if (value := figure_of(row)) is not None]
    who = "" if workers is None else "1 worker" if workers == 1 else f"{workers} workers"
    axes.plot(
        [load for load, _ in points], [value for _, value in points], style, marker=".", color=COLORS[(workers or 0) % len(COLORS)],
        label=" ".join(filter(None, [who, label])) or None,
    )  # fmt: skip
