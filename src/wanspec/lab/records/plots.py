"""Plots as files: what all of the lab's plots share. matplotlib takes a second to import, and is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from wanspec.errors import ConfigError
from wanspec.lab.records.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SUFFIXES: Final = (".png", ".svg", ".pdf")
DPI: Final = 130
GREY, LIGHT_GREY, BLUE, ORANGE, GREEN, RED = "#888a85", "#babdb6", "#204a87", "#f57900", "#4e9a06", "#a40000"
COLORS: Final = (GREY, BLUE, GREEN, ORANGE, "#5c3566", "#c4a000", RED, "#8f5902")
"""For lines that have no colour of their own, in turn."""
MANY_POINTS: Final = 30
"""From here on a line is clearer without a dot at each point."""
LEGEND_COLUMNS: Final = 3
Point = tuple[float | None, float | None, Interval | None]
"""x, y, and the interval of y; None: not known."""


class TradeOff(NamedTuple):
    """One curve of latency and offload."""

    label: str
    latency: Sequence[Point]
    offload: Sequence[Point]
    look: Mapping[str, Any]
    """matplotlib's words for a line."""


def check_picture(path: Path | None) -> None:
    """Raise ConfigError, before any work is done, where the file's name says no kind of plot that can be drawn."""
    if path is not None and path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot {path}: name a file that ends with {', '.join(SUFFIXES)}")


def new_picture(width: float, height: float) -> Figure:
    """An empty plot of this size in inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # see above

    return Figure(figsize=(width, height), layout="constrained")


def save_picture(picture: Figure, path: Path) -> None:
    """Raises ConfigError where it cannot be written."""
    try:
        picture.savefig(path, dpi=DPI)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name a file that you can write") from error


def name_axes(axes: Axes, x: str = "", y: str = "", *, title: str = "", size: float = 9) -> None:
    """Write what the axes show; `size`: of the title, in points."""
    axes.set_xlabel(x, fontsize=size)
    axes.set_ylabel(y, fontsize=size)
    axes.set_title(title, fontsize=size)
    axes.tick_params(labelsize=size)
    axes.grid(alpha=0.3)


def draw_line(axes: Axes, points: Sequence[Point], **look: Any) -> None:  # noqa: ANN401  # matplotlib's
    """A line through the points that are known, and their intervals as a band; nothing where there are none."""
    known = sorted((x, y, interval or (y, y)) for x, y, interval in points if x is not None and y is not None)
    if not known:
        return
    xs = [x for x, _, _ in known]
    (line,) = axes.plot(xs, [y for _, y, _ in known], **{"marker": "." if len(xs) < MANY_POINTS else "", **look})
    lows, highs = zip(*(interval for _, _, interval in known), strict=True)
    if lows != highs:
        axes.fill_between(xs, lows, highs, color=line.get_color(), alpha=0.2, linewidth=0)


def plot_trade_offs(
    curves: Sequence[TradeOff], path: Path, *, against: str, title: str, bound: Mapping[float, float] | None = None
) -> None:
    """Latency above, offload below, both relative to the co-located chain. `bound`: the most that can be moved, by x."""
    figure = new_picture(7.0, 7.0)
    above, below = figure.subplots(2, 1, sharex=True)
    for label, latency, offload, look in curves:
        draw_line(above, latency, label=label, **look)
        draw_line(below, offload, label=label, **look)
    if bound:
        below.plot(list(bound), list(bound.values()), "k:", label="information bound: the most that `paper` could move without waiting")
    above.axhline(1.0, color="black", linewidth=0.8)
    name_axes(above, y="inter-token latency / co-located chain", title=title)
    name_axes(below, against, "draft passes moved away")
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=8)
    save_picture(figure, path)


def draw_matrix(
    axes: Axes, values: Sequence[Sequence[float]], *, rows: Sequence[str], columns: Sequence[str],
    frames: Mapping[tuple[int, int], str], words: Mapping[tuple[int, int], tuple[str, str]], **look: Any,  # noqa: ANN401  # matplotlib's
) -> AxesImage:  # fmt: skip
    """Values as colours. By row and column, `frames`: the colour of a frame around a cell; `words`: its text and the text's colour."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415  # as in `new_picture`

    for (row, column), color in frames.items():
        axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor=color, linewidth=1.8))
    for (row, column), (text, color) in words.items():
        weight = "bold" if text.endswith("*") else "normal"
        axes.text(column, row, text, ha="center", va="center", fontsize=6.5 if "\n" in text else 9, color=color, weight=weight)
    axes.set_xticks(range(len(columns)), list(columns), rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    return axes.imshow(values, aspect="auto", **look)
