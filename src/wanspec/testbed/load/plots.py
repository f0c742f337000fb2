"""A picture of a load: throughput and latencies against users or rate, a line for each number of workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wanspec.errors import ConfigError
from wanspec.testbed.load.rows import LevelRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES: Final = (".png", ".svg", ".pdf")
COLORS: Final = ("#888a85", "#204a87", "#4e9a06", "#f57900", "#5c3566", "#c4a000", "#a40000", "#8f5902")
"""Of 0 workers, 1, 2, ...; then again from the start."""
STYLES: Final = (("p50", "-"), ("p90", "--"), ("p99", ":"))


def check_picture(path: Path | None) -> None:
    """Raise ConfigError, before any work is done, where the file's name says no kind of picture that can be drawn."""
    if path is not None and path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot {path}: name a file that ends with {', '.join(SUFFIXES)}")


def plot_load(rows: Sequence[LevelRow], path: Path, *, title: str) -> None:
    """Throughput, TTFT and ITL; users and rates side by side where there are both. Void levels are left out. Raises ConfigError."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # a second; most runs draw nothing

    valid = [row for row in rows if row.void is None]
    kinds = [kind for kind in (_USERS, _RATES) if any(kind[1](row) is not None for row in valid)]
    figure = Figure(figsize=(1.0 + 5.0 * max(1, len(kinds)), 9.0), layout="constrained")
    for column, (name, load_of) in enumerate(kinds):
        throughput, ttft, itl = [figure.add_subplot(3, len(kinds), 1 + column + place * len(kinds)) for place in range(3)]
        for workers in dict.fromkeys(row.workers for row in valid):
            own = sorted(
                [(load, row) for row in valid if row.workers == workers and (load := load_of(row)) is not None], key=lambda each: each[0]
            )
            _draw(throughput, own, workers, "", "-", lambda row: row.tokens_per_s)
            for place, (label, style) in enumerate(STYLES):
                _draw(ttft, own, workers, label, style, lambda row, place=place: row.ttft_ms and row.ttft_ms[place])  # type: ignore[misc]
                _draw(itl, own, workers, label, style, lambda row, place=place: row.itl_ms and row.itl_ms[place])  # type: ignore[misc]
        for axes, label in ((throughput, "tokens/s"), (ttft, "time to first token (ms)"), (itl, "inter-token latency (ms)")):
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0.0)
        itl.set_xlabel(name)
        throughput.legend(fontsize=8)
        ttft.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name a file that you can write") from error


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


def _users(row: LevelRow) -> float | None:
    return row.users


def _rate(row: LevelRow) -> float | None:
    return row.rate_per_s


_USERS, _RATES = ("users", _users), ("requests per second", _rate)
