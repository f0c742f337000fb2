"""Pictures of a benchmark: figures against the round trip, a reliability diagram, a timeline of one request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from wanspec.core.speculation.types import SessionId
from wanspec.lab.bench.policies.plan import LOOKUP_TREE, needs_worker
from wanspec.lab.bench.policies.rows import BenchRow, reliability_of
from wanspec.lab.bench.policies.run import Bench
from wanspec.lab.records.intervals import Interval
from wanspec.lab.records.picture import new_picture, save_picture
from wanspec.lab.records.run_names import ALONE
from wanspec.lab.simulation.plots import plot_timeline
from wanspec.telemetry.records import MessageReceived, MessageSent, Record, RequestArrived
from wanspec.telemetry.reliability import ReliabilityBins, calibration_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 7.0
"""Of a picture, in inches."""
TIMELINE_S = 1.0
"""Of the request that is drawn: more would be too fine to see."""
COLORS = {
    "autoregressive": "#888a85", "colocated": "#204a87", "colocated-tree": "#5c3566", "remote": "#c4a000", "paper": "#f57900",
    "adaptive": "#4e9a06", LOOKUP_TREE: "#ad7fa8", ALONE: "#8ae234",
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
    figure = new_picture(WIDTH, 7.0)
    above, below = figure.subplots(2, 1, sharex=True)
    for key in dict.fromkeys((row.policy, row.loss) for row in rows):
        policy, loss = key
        if not needs_worker(policy) and loss != rows[0].loss:
            continue  # the same line again
        own = [row for row in rows if (row.policy, row.loss) == key]
        label = policy + (f", {loss:.1%} lost" if loss and needs_worker(policy) else "")
        style = "--" if loss and needs_worker(policy) else "-"
        _draw(above, [(row.rtt_ms, row.itl_ratio, row.itl_ratio_interval) for row in own], COLORS.get(policy), style, label)
        _draw(below, [(row.rtt_ms, row.offload_fraction, row.offload_interval) for row in own], COLORS.get(policy), style, label)
    above.axhline(1.0, color="black", linewidth=0.8)
    above.set_ylabel("inter-token latency / best co-located chain")
    below.set_ylabel("draft passes moved away")
    below.set_xlabel("round trip (ms)")
    above.set_title(title, fontsize=9)
    below.legend(fontsize=8)
    save_picture(figure, path)


def plot_reliability(bins: ReliabilityBins, path: Path, *, title: str) -> None:
    """Observed against estimated acceptance, and how many drafts each point stands for."""
    figure = new_picture(WIDTH, 6.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = [own for own in bins if own.drafts]
    above.plot([0, 1], [0, 1], color="black", linewidth=0.8, label="as estimated")
    above.plot(
        [own.estimated / own.drafts for own in filled], [own.accepted / own.drafts for own in filled], "o-", color=COLORS["adaptive"],
        label=f"observed; mean error {calibration_error(bins):.3f}",
    )  # fmt: skip
    below.bar([(index + 0.5) / len(bins) for index in range(len(bins))], [own.drafts for own in bins], 0.9 / len(bins), color="#888a85")
    above.set_ylabel("observed acceptance")
    below.set_ylabel("drafts")
    below.set_xlabel("estimated acceptance, given the parent's")
    above.set_title(title, fontsize=9)
    above.legend(fontsize=8)
    save_picture(figure, path)


def beginning_of(records: Sequence[Record], session: SessionId, limit_s: float) -> list[Record]:
    """What happened to the session until `limit_s` after its arrival, with the arrival as the origin of time.

    A message counts when it has arrived in time; one that was still under way is left out at both ends.
    """
    origin = next(record.t for record in records if isinstance(record, RequestArrived) and record.session == session)
    own = sorted((replace(record, t=record.t - origin) for record in records), key=lambda record: record.t)
    kept: list[Record] = [record for record in own if record.t <= limit_s and not isinstance(record, MessageSent | MessageReceived)]
    for origin_site, goal in (("controller", "worker"), ("worker", "controller")):
        received = [record for record in own if isinstance(record, MessageReceived) and (record.site, record.session) == (goal, session)]
        sent = [record for record in own if isinstance(record, MessageSent) and (record.site, record.session) == (origin_site, session)]
        count = sum(record.t <= limit_s for record in received)
        kept += [*sent[:count], *received[:count]]
    return kept


def _draw(
    axes: Axes, points: Sequence[tuple[float | None, float | None, Interval | None]], color: str | None, style: str, label: str
) -> None:
    known = sorted((x, y, interval or (y, y)) for x, y, interval in points if x is not None and y is not None)
    xs = [x for x, _, _ in known]
    axes.plot(xs, [y for _, y, _ in known], style, marker=".", color=color, label=label)
    axes.fill_between(xs, [low for _, _, (low, _) in known], [high for _, _, (_, high) in known], color=color, alpha=0.15, linewidth=0)
