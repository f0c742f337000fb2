"""Pictures of a benchmark: figures against the round trip, a reliability diagram, a timeline of one request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wanspec.lab.bench.policies.cells import LOOKUP_TREE, needs_worker
from wanspec.lab.bench.policies.comparison import BenchRow, reliability_of
from wanspec.lab.bench.policies.runner import Bench
from wanspec.lab.records.plots import BLUE, GREEN, GREY, ORANGE, Point, TradeOff, name_axes, new_picture, plot_trade_offs, save_picture
from wanspec.lab.records.run_names import ALONE
from wanspec.lab.records.timeline import beginning_of, plot_timeline
from wanspec.telemetry.records import RequestArrived
from wanspec.telemetry.reliability import ReliabilityBins, calibration_error

TIMELINE_S = 1.0
"""Of the request that is drawn: more would be too fine to see."""
COLORS = {
    "autoregressive": GREY, "colocated": BLUE, "colocated-tree": "#5c3566", "remote": "#c4a000", "paper": ORANGE, "adaptive": GREEN,
    LOOKUP_TREE: "#ad7fa8", ALONE: "#8ae234",
}  # fmt: skip


def draw(bench: Bench, folder: Path) -> list[Path]:
    """Everything that can be drawn of what was measured. Raises ConfigError when a picture cannot be written."""
    paths = []
    for temperature in bench.config.temperatures:
        rows = [row for row in bench.rows if row.temperature == temperature]
        if any(row.itl_ratio is not None for row in rows):
            paths.append(folder / f"rtt-T{temperature:g}.png")
            plot_against_rtt(rows, paths[-1], title=f"{bench.config.preset or bench.config.target}, T = {temperature:g}")
        adaptive = [cell for cell in bench.cells if (cell.name, cell.temperature) == ("adaptive", temperature)]
        bins = reliability_of(adaptive, bench.runs)
        if bins is not None and any(own.drafts for own in bins):
            paths.append(folder / f"reliability-T{temperature:g}.png")
            plot_reliability(bins, paths[-1], title=f"adaptive, all links, T = {temperature:g}")
    if bench.example:
        session = min(record.session for record in bench.example if isinstance(record, RequestArrived))
        paths.append(folder / "timeline.png")
        title = f"{bench.example_label}, real processes: the first {TIMELINE_S:g} s of a request"
        plot_timeline(beginning_of(bench.example, session, TIMELINE_S), session, paths[-1], title=title)
    return paths


def plot_against_rtt(rows: Sequence[BenchRow], path: Path, *, title: str) -> None:
    """ITL ratio and offload against the round trip with their intervals: a line per policy, dashed where packets are lost."""
    curves = []
    for key in dict.fromkeys((row.policy, row.loss) for row in rows):
        policy, loss = key
        is_lossy = bool(loss) and needs_worker(policy)
        if not needs_worker(policy) and loss != rows[0].loss:
            continue  # the same line again
        own = [row for row in rows if (row.policy, row.loss) == key]
        latency: list[Point] = [(row.rtt_ms, row.itl_ratio, row.itl_ratio_interval) for row in own]
        offload: list[Point] = [(row.rtt_ms, row.offload_fraction, row.offload_interval) for row in own]
        label = f"{policy}, {loss:.1%} lost" if is_lossy else policy
        curves.append(TradeOff(label, latency, offload, {"color": COLORS.get(policy), "linestyle": "--" if is_lossy else "-"}))
    plot_trade_offs(curves, path, against="round trip (ms)", title=title)


def plot_reliability(bins: ReliabilityBins, path: Path, *, title: str) -> None:
    """Observed against estimated acceptance, and how many drafts each point stands for."""
    figure = new_picture(7.0, 6.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = [own for own in bins if own.drafts]
    above.plot([0, 1], [0, 1], color="black", linewidth=0.8, label="as estimated")
    above.plot(
        [own.estimated / own.drafts for own in filled], [own.accepted / own.drafts for own in filled], "o-", color=COLORS["adaptive"],
        label=f"observed; mean error {calibration_error(bins):.3f}",
    )  # fmt: skip
    below.bar([(index + 0.5) / len(bins) for index in range(len(bins))], [own.drafts for own in bins], 0.9 / len(bins), color="#888a85")
    name_axes(above, y="observed acceptance", title=title)
    name_axes(below, "estimated acceptance, given the parent's", "drafts")
    above.legend(fontsize=8)
    save_picture(figure, path)
