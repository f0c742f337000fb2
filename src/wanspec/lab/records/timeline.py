"""One request over time: a plot of its passes, messages and tokens, and the same for a trace viewer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from wanspec.core.speculation.types import SessionId
from wanspec.files import write_whole
from wanspec.lab.records.plots import GREY, name_axes, new_picture, save_picture
from wanspec.telemetry.records import (
    DraftsReceived,
    MessageReceived,
    MessageSent,
    PassFinished,
    Record,
    RequestArrived,
    TokensEmitted,
    Verified,
)

COLORS = {"target": "#3465a4", "local draft": "#f57900", "worker draft": "#73d216"}
SITES = (("controller", "worker"), ("worker", "controller"))
"""Where a message comes from, and where it goes."""


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
        axes.plot([flight.sent_ms, flight.received_ms], [begin, end], color=GREY, linewidth=0.5)
    for record in records:
        if isinstance(record, TokensEmitted) and record.session == session:
            axes.text(record.t * 1e3, 0.0, str(len(record.tokens)), ha="center", va="center", fontsize=7)
    axes.set_yticks([0.0, *rows.values()], ["tokens", *rows])
    axes.set_ylim(-0.2, 2.4)
    axes.plot([], [], color=GREY, linewidth=0.5, label="message on its way: drafts to the target's site, commits to the worker's")
    figure.legend(loc="outside lower right", fontsize=8)
    name_axes(axes, "ms; the numbers: tokens committed at that moment", title=title)
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


def beginning_of(records: Sequence[Record], session: SessionId, limit_s: float) -> list[Record]:
    """What happened to the session until `limit_s` after its arrival, with the arrival as the origin of time.

    A message counts when it has arrived in time; one that was still under way is left out at both ends.
    """
    origin = next(record.t for record in records if isinstance(record, RequestArrived) and record.session == session)
    own = sorted((replace(record, t=record.t - origin) for record in records), key=lambda record: record.t)
    kept: list[Record] = [record for record in own if record.t <= limit_s and not isinstance(record, MessageSent | MessageReceived)]
    for sent, received in _messages(own, session):
        count = sum(record.t <= limit_s for record in received)
        kept += [*sent[:count], *received[:count]]
    return kept


def _flights(records: Sequence[Record], session: SessionId) -> list[_Flight]:
    """Messages of the session, each with its arrival: in order, since a stream keeps it. Those of a run with losses are left out."""
    return [
        _Flight(*pair)
        for sent, received in _messages(records, session)
        if len(sent) == len(received)
        for pair in zip(sent, received, strict=True)
    ]


def _messages(records: Sequence[Record], session: SessionId) -> list[tuple[list[MessageSent], list[MessageReceived]]]:
    """The session's messages in each direction: sent, and received."""
    own = [record for record in records if isinstance(record, MessageSent | MessageReceived) and record.session == session]
    return [
        (
            [record for record in own if isinstance(record, MessageSent) and record.site == origin],
            [record for record in own if isinstance(record, MessageReceived) and record.site == goal],
        )
        for origin, goal in SITES
    ]
