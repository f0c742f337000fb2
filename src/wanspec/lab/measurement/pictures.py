"""The pictures of a report. Each is one file; nothing in them depends on a font or a service that may not be there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from wanspec.lab.measurement.analysis import HOURS, MEDIAN, SHARES, TAIL, Analysis, PairFigures
from wanspec.lab.measurement.resampling import Estimate
from wanspec.lab.records.plots import BLUE, LIGHT_GREY, ORANGE, Point, draw_line, draw_matrix, name_axes, new_picture, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

HOME_COLOR, ABROAD_COLOR = BLUE, ORANGE
MAX_COLUMNS: Final = 2
"""Of pictures with a panel for each place."""


def draw_all(analysis: Analysis, folder: Path) -> dict[str, Path]:
    """Every picture that there is something to show in, by name. Raises ConfigError where they cannot be written."""
    drawn: dict[str, Picture] = {}
    for share in SHARES:
        name = f"p{100 * share:.0f}"
        if any(share in cell.ttft for cell in analysis.cells.values()):
            drawn[f"ttft-{name}"] = _heat_map(analysis, f"TTFT {name}, ms", partial(PairFigures.ttft_at, share=share))
    if any(MEDIAN in cell.itl for cell in analysis.cells.values()):
        drawn["itl-p50"] = _heat_map(analysis, "inter-token latency, median, ms", lambda cell: cell.itl.get(MEDIAN))
    if any(MEDIAN in cell.connect for cell in analysis.cells.values()):
        drawn["connect-p50"] = _heat_map(analysis, "TCP connect time, median, ms", lambda cell: cell.connect.get(MEDIAN))
        drawn["connect-and-ttft"] = _connect_and_ttft(analysis)
    drawn["hours"] = _hours(analysis)
    paths = {}
    for name, picture in drawn.items():
        paths[name] = folder / f"{name}.png"
        save_picture(picture, paths[name])
    return paths


def _heat_map(analysis: Analysis, title: str, of: Callable[[PairFigures], Estimate | None]) -> Picture:
    """Probes down, targets across; the colour's scale is logarithmic. A frame: home. A star: the row's best, beyond its interval."""
    from matplotlib.colors import LogNorm  # noqa: PLC0415  # as in `new_picture`
    from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415

    probes, targets = analysis.samples.probes, analysis.samples.targets
    found = [[analysis.cells.get((probe, target)) for target in targets] for probe in probes]
    values = np.array([[1e3 * figure.value if cell and (figure := of(cell)) else math.nan for cell in row] for row in found])
    known = values[np.isfinite(values) & (values > 0)]
    norm = LogNorm(max(0.001, known.min() * 0.95), known.max() * 1.05) if len(known) else None
    picture = new_picture(2.6 + 1.05 * len(targets), 1.6 + 0.5 * len(probes))
    axes = picture.add_subplot()
    frames, words = {}, {}
    for row, probe in enumerate(probes):
        best = _best([of(cell) if cell else None for cell in found[row]])
        for column, target in enumerate(targets):
            value = values[row, column]
            is_dark = bool(norm and norm(value) > 0.55)  # noqa: PLR2004  # of the colours' range
            words[row, column] = (_cell_text(value, is_best=column == best), "white" if is_dark else "black")
            if analysis.is_at_home(probe, target):
                frames[row, column] = "#cc0000"
    labels = [_label(analysis, target) for target in targets]
    image = draw_matrix(axes, values.tolist(), rows=probes, columns=labels, frames=frames, words=words, cmap="cividis_r", norm=norm)
    axes.set_xlabel("target")
    axes.set_ylabel("asked from")
    axes.set_title(f"{title}  (frame: home; *: best of its row, beyond its interval)", fontsize=9)
    bar = picture.colorbar(image)
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return picture


def _best(figures: Sequence[Estimate | None]) -> int:
    """The place of the smallest, if its interval ends before every other figure; else -1."""
    known = sorted((figure.value, place) for place, figure in enumerate(figures) if figure is not None and math.isfinite(figure.value))
    if not known:
        return -1
    smallest = figures[known[0][1]]
    is_sure = len(known) == 1 or (smallest is not None and smallest.high < known[1][0])
    return known[0][1] if is_sure else -1


def _cell_text(value: float, *, is_best: bool) -> str:
    return "-" if math.isnan(value) else (f"{value:.0f}" if value >= 100 else f"{value:.3g}") + ("*" if is_best else "")  # noqa: PLR2004  # three digits are enough


def _hours(analysis: Analysis) -> Picture:
    """A panel for each target: medians and p90 by its local hour, from its nearest probe; the medians of the others in grey."""
    picture, axes_of = _panels(analysis.samples.targets, height=2.6)
    for target, axes in axes_of.items():
        cells = [cell for (_, name), cell in analysis.cells.items() if name == target]
        cells.sort(key=lambda cell: cell.connect[MEDIAN].value if MEDIAN in cell.connect else math.inf)
        for cell in cells[1:]:
            draw_line(axes, _by_hour(cell, MEDIAN, has_band=False), color=LIGHT_GREY, linewidth=0.8, markersize=3)
        if cells:
            nearest = cells[0].pair.probe
            draw_line(axes, _by_hour(cells[0], MEDIAN), color=HOME_COLOR, markersize=3, label=f"median from {nearest}")
            draw_line(axes, _by_hour(cells[0], 0.9), color=ABROAD_COLOR, markersize=3, label=f"p90 from {nearest}")
        diurnal = analysis.diurnal.get(target)
        p = "" if diurnal is None or math.isnan(diurnal.p) else f", diurnal: p = {diurnal.p:.3f}"
        title = f"{_label(analysis, target)} ({analysis.samples.zones[target]}{p})"
        name_axes(axes, "local hour", "TTFT, ms", title=title, size=7)
        axes.set_xlim(0, 23)
        axes.set_xticks(range(0, 24, 3))
        axes.set_ylim(bottom=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6)
    return picture


def _by_hour(cell: PairFigures, share: float, *, has_band: bool = True) -> list[Point]:
    """TTFT over the hours, ms, and its interval."""
    figures = {hour: figure for hour in HOURS if (figure := cell.hours[hour].get(share))}
    return [(hour, 1e3 * own.value, (1e3 * own.low, 1e3 * own.high) if has_band else None) for hour, own in figures.items()]


def _connect_and_ttft(analysis: Analysis) -> Picture:
    """A panel for each probe: from median to p95, connect time and TTFT of each target, one above the other."""
    picture, axes_of = _panels(analysis.samples.probes, height=1.2 + 0.28 * len(analysis.samples.targets))
    for probe, axes in axes_of.items():
        for row, target in enumerate(analysis.samples.targets):
            cell = analysis.cells.get((probe, target))
            for figures, shift, color, label in (
                (cell.connect if cell else {}, -0.17, HOME_COLOR, "connect"), (cell.ttft if cell else {}, 0.17, ABROAD_COLOR, "TTFT"),
            ):  # fmt: skip
                if MEDIAN in figures:
                    middle, end = 1e3 * figures[MEDIAN].value, 1e3 * figures.get(TAIL, figures[MEDIAN]).value
                    axes.plot([middle, end], [row + shift] * 2, color=color, linewidth=3, solid_capstyle="butt", label=label)
                    axes.plot([middle], [row + shift], "o", color=color, markersize=4)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(handles.values(), handles.keys(), fontsize=6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(range(len(analysis.samples.targets)), [_label(analysis, target) for target in analysis.samples.targets], fontsize=7)
        axes.invert_yaxis()
        has_tails = any(
            TAIL in figures for (source, _), cell in analysis.cells.items() if source == probe for figures in (cell.connect, cell.ttft)
        )
        what = "ms: median (dot) to p95 (end)" if has_tails else "ms: medians; too few requests for p95"
        name_axes(axes, what, title=f"from {probe}", size=7)
        axes.margins(x=0.08)
    return picture


def _panels(names: Sequence[str], *, height: float) -> tuple[Picture, dict[str, Axes]]:
    """A picture with a panel for each."""
    columns = min(MAX_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    picture = new_picture(4.6 * columns, height * rows)
    return picture, {name: picture.add_subplot(rows, columns, index + 1) for index, name in enumerate(names)}


def _label(analysis: Analysis, target: str) -> str:
    is_routed = any(pair.routed for (_, name), pair in analysis.samples.pairs.items() if name == target)
    return f"{target} (routed)" if is_routed else target
