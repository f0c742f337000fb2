"""Pictures of sweeps and of single requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanspec.core.speculation.types import SessionId
from wanspec.files import write_whole
from wanspec.lab.records.picture import new_picture, save_picture
from wanspec.lab.simulation.sweep import SimulatedRow
from wanspec.telemetry.records import (
    DraftsReceived,
    MessageReceived,
    MessageSent,
    PassFinished,
    Record,
    TokensEmitted,
    Verified,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESAMPLES = 1000
CONFIDENCE = 0.95
MANY_POINTS = 30
"""From here on a line is clearer without a dot at each point."""
PHI, RTT = "policy.phi", "link.rtt_ms"
STYLES = ("-", "--")
"""In turn; each line is thinner than the one before, too: a line that lies on another lets it be seen."""
WIDEST, NARROWEST, NARROWER = 3.2, 1.2, 0.5
"""Of lines, in points."""
LEGEND_COLUMNS = 3
BANDS = "bands: 95 % interval of the median over seeds"
COLORS = {"target": "#3465a4", "local draft": "#f57900", "worker draft": "#73d216", "message": "#888a85"}


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of the median of `values` at CONFIDENCE."""
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(np.asarray(values), (RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def plot_against_rtt(rows: Sequence[SimulatedRow], path: Path, *, title: str, bound: Mapping[float, float] | None = None) -> None:
    """Latency ratio and offload fraction against the round trip, a line per policy; `bound`: the most that can be moved, by RTT in ms."""
    groups = _grouped(rows, lambda row: _label(row, leaving_out={RTT}))
    _plot_groups(groups, lambda row: row.rtt_ms, path, against="round trip (ms)", title=title, bound=bound or {})


def plot_phi(rows: Sequence[SimulatedRow], path: Path, *, title: str, unit: str = "nats") -> None:
    """What phi trades: latency ratio and offload fraction against it, a line per round trip. `unit`: of phi in the rows."""
    groups = _grouped(rows, lambda row: f"{_label(row, leaving_out={PHI, RTT})}, {row.rtt_ms:g} ms")
    _plot_groups(groups, lambda row: row.point[PHI], path, against=f"phi ({unit})", title=title, bound={})


def plot_timeline(records: Sequence[Record], session: SessionId, path: Path, *, title: str = "") -> None:
    """One request: passes at both sites as bars, messages as lines between them, and the tokens as they came."""
    figure = new_picture(12.0, 4.0)
    axes = figure.subplots()
    rows = {"worker draft": 2.0, "local draft": 1.0, "target": 0.4}
    worker_edge, controller_edge = 1.75, 1.25
    for bar in _passes(records, session):
        axes.barh(rows[bar.lane], bar.duration_ms, left=bar.start_ms, height=0.5, color=COLORS[bar.lane], edgecolor="white", linewidth=0.4)
    for flight in _flights(records, session):
        begin, end = (worker_edge, controller_edge) if flight.is_up else (controller_edge, worker_edge)
        axes.plot([flight.sent_ms, flight.received_ms], [begin, end], color=COLORS["message"], linewidth=0.5)
    for record in records:
        if isinstance(record, TokensEmitted) and record.session == session:
            axes.text(record.t * 1e3, 0.0, str(len(record.tokens)), ha="center", va="center", fontsize=7)
    axes.set_yticks([0.0, *rows.values()], ["tokens", *rows])
    axes.set_ylim(-0.2, 2.4)
    axes.plot(
        [], [], color=COLORS["message"], linewidth=0.5, label="message on its way: drafts to the target's site, commits to the worker's"
    )
    figure.legend(loc="outside lower right", fontsize=8)
    axes.set_xlabel("ms; the numbers: tokens committed at that moment")
    axes.set_title(title, fontsize=9)
    save_picture(figure, path)


def write_chrome_trace(records: Sequence[Record], session: SessionId, path: Path) -> None:
    """The same request for a trace viewer (chrome://tracing, Perfetto)."""
    lanes = {"target": (1, 1), "local draft": (1, 2), "worker draft": (2, 1)}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}} for pid, name in ((1, "controller"), (2, "worker"))
    ]
    events += [{"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}} for name, (pid, tid) in lanes.items()]
    for bar in _passes(records, session):
        pid, tid = lanes[bar.lane]
        fields = {"name": bar.lane, "ts": bar.start_ms * 1e3, "dur": bar.duration_ms * 1e3, "args": {"tokens": bar.tokens}}
        events.append({"ph": "X", "pid": pid, "tid": tid, **fields})
    for number, flight in enumerate(_flights(records, session)):
        begin, end = ((2, 1), (1, 2)) if flight.is_up else ((1, 1), (2, 1))
        common = {"name": flight.kind, "cat": "message", "id": number}
        events.append({"ph": "s", "pid": begin[0], "tid": begin[1], "ts": flight.sent_ms * 1e3, **common})
        events.append({"ph": "f", "bp": "e", "pid": end[0], "tid": end[1], "ts": flight.received_ms * 1e3, **common})
    for record in records:
        if isinstance(record, Verified) and record.session == session:
            args = {"drafted": record.drafted, "accepted": record.accepted, "entropy_nats": record.entropy_nats}
            events.append({"ph": "i", "s": "t", "pid": 1, "tid": 1, "name": "round", "ts": record.t * 1e6, "args": args})
        elif isinstance(record, DraftsReceived) and record.session == session:
            args = {"joined": record.joined, "stale": record.stale, "refused": record.refused}
            events.append({"ph": "i", "s": "t", "pid": 1, "tid": 2, "name": "drafts", "ts": record.t * 1e6, "args": args})
    write_whole(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


class _Bar:
    """A pass on the timeline."""

    def __init__(self, record: PassFinished) -> None:
        self.lane = "worker draft" if record.site == "worker" else ("target" if record.model == "target" else "local draft")
        self.duration_ms = record.duration_s * 1e3
        self.start_ms = record.t * 1e3 - self.duration_ms
        self.tokens = record.tokens


class _Flight:
    """A message on its way."""

    def __init__(self, sent: MessageSent, received: MessageReceived) -> None:
        self.kind = sent.message
        self.is_up = sent.site == "worker"
        self.sent_ms, self.received_ms = sent.t * 1e3, received.t * 1e3


def _passes(records: Sequence[Record], session: SessionId) -> list[_Bar]:
    return [_Bar(record) for record in records if isinstance(record, PassFinished) and session in record.sessions]


def _flights(records: Sequence[Record], session: SessionId) -> list[_Flight]:
    """Messages of the session, each with its arrival: in order, since a stream keeps it. Those of a run with losses are left out."""
    flights = []
    for origin, goal in (("controller", "worker"), ("worker", "controller")):
        sent = [record for record in records if isinstance(record, MessageSent) and record.site == origin and record.session == session]
        received = [
            record for record in records if isinstance(record, MessageReceived) and record.site == goal and record.session == session
        ]
        if len(sent) == len(received):
            flights += [_Flight(*pair) for pair in zip(sent, received, strict=True)]
    return flights


def _plot_groups(
    groups: Mapping[str, Sequence[SimulatedRow]], x_of: Callable[[SimulatedRow], float | None], path: Path, *, against: str, title: str,
    bound: Mapping[float, float],
) -> None:  # fmt: skip
    figure = new_picture(7.0, 7.0)
    above, below = figure.subplots(2, 1, sharex=True)
    for number, (label, group) in enumerate(groups.items()):
        look = {"label": label, "linestyle": STYLES[number % len(STYLES)], "linewidth": max(NARROWEST, WIDEST - NARROWER * number)}
        _draw(above, group, x_of, lambda row: row.itl_ratio, look)
        _draw(below, group, x_of, lambda row: row.offload_fraction, look)
    if bound:
        below.plot(list(bound), list(bound.values()), "k:", label="information bound: the most that `paper` could move without waiting")
    above.axhline(1.0, color="black", linewidth=0.8)
    above.set_title(f"{title}\n{BANDS}", fontsize=9)
    above.set_ylabel("inter-token latency / co-located")
    below.set_ylabel("draft passes moved away")
    below.set_xlabel(against)
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=8)
    save_picture(figure, path)


def _grouped(rows: Sequence[SimulatedRow], key: Callable[[SimulatedRow], str]) -> dict[str, list[SimulatedRow]]:
    groups: dict[str, list[SimulatedRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _label(row: SimulatedRow, *, leaving_out: set[str]) -> str:
    others = [f"{name.rpartition('.')[2]} {value}" for name, value in row.point.items() if name not in {"policy.name", *leaving_out}]
    return ", ".join([row.policy, *others])


def _draw(
    axes: Axes,
    rows: Sequence[SimulatedRow],
    x_of: Callable[[SimulatedRow], float | None],
    y_of: Callable[[SimulatedRow], float | None],
    look: Mapping[str, Any],
) -> None:
    """Medians with their intervals. `look`: matplotlib's words for a line."""
    values: dict[float, list[float]] = {}
    for row in rows:
        x, y = x_of(row), y_of(row)
        if x is not None and y is not None:
            values.setdefault(x, []).append(y)
    xs = sorted(values)
    intervals = [bootstrap_interval(values[x]) for x in xs]
    (line,) = axes.plot(xs, [np.median(values[x]) for x in xs], marker="." if len(xs) < MANY_POINTS else "", **look)
    axes.fill_between(xs, [low for low, _ in intervals], [high for _, high in intervals], color=line.get_color(), alpha=0.2, linewidth=0)
