"""The report's page: one file of HTML with its pictures inside. It loads nothing, from anywhere, and runs no script."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from html import escape
from pathlib import Path
from typing import Final

from wanspec.lab.measurement.analysis import HOURS, MEDIAN, SHARES, TAIL, Analysis, Cell, least_number
from wanspec.lab.measurement.findings import Finding, ms, p_text
from wanspec.lab.measurement.resampling import Figure
from wanspec.lab.measurement.rows import Note
from wanspec.lab.measurement.samples import Pair
from wanspec.lab.records.statistics import CONFIDENCE
from wanspec.lab.records.table import counted

POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MAX_NOTES: Final = 100
"""Shown of them."""
STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #ccc}
table{border-collapse:collapse;font-size:.8rem;margin:.6rem 0}td,th{padding:.2rem .5rem;border:1px solid #ddd;text-align:right}
th{background:#f4f4f4;font-weight:600}td:first-child,th:first-child{text-align:left}td.home{outline:2px solid #c00;outline-offset:-2px}
small{color:#666;display:block;white-space:nowrap}img{max-width:100%;height:auto;display:block;margin:.6rem 0}
dt{font-weight:600;margin-top:.7rem}
dd{margin:0}.warn{background:#fff6d6;padding:.4rem .8rem;border-left:4px solid #e0b000}.wide{overflow-x:auto}
@media (prefers-color-scheme:dark){body{color:#ddd;background:#16191c}th{background:#23282c}td,th,h2{border-color:#3a4147}
small{color:#9aa4ab}.warn{background:#3a3216}img{background:#fff;padding:.3rem;border-radius:.3rem}}
@media (max-width:44rem){body{margin:1rem auto}table{display:block;overflow-x:auto}}
"""
PICTURES: Final = {
    "hours": "Medians and p90 of TTFT by the target's local hour, as seen from the probe nearest to it, with their intervals; "
    "grey: the medians from the other probes.",
    "connect-and-ttft": "Connect time beside TTFT, each from its median to its p95, where there are requests enough. "
    "Where connect times are short bars and TTFT long ones, requests wait in a queue, not on the way.",
}


def render(
    analysis: Analysis, answers: Iterable[Finding], warnings: Iterable[str], notes: Sequence[Note], pictures: Mapping[str, Path]
) -> str:
    """The whole page."""
    body = [
        f"<h1>{escape(', '.join(analysis.samples.campaigns))}</h1>",
        f"<p>{escape(_scope(analysis))}</p>",
        *[f'<p class="warn">{escape(warning)}</p>' for warning in warnings],
        "<h2>Findings</h2><dl>",
        *[f"<dt>{escape(finding.question)}</dt><dd>{escape(finding.answer)}</dd>" for finding in answers],
        "</dl>",
        f"<p>{escape(_method(analysis))}</p>",
        "<h2>Time to first token</h2>",
        *[_image(pictures, f"ttft-p{100 * share:.0f}") for share in SHARES],
        _too_few(analysis),
        *[_matrix(analysis, f"TTFT p{100 * share:.0f}, ms", partial(Cell.ttft_at, share=share)) for share in SHARES],
        "<h2>Home against abroad</h2>",
        _comparisons(analysis),
        "<h2>The hours of the day</h2>",
        _image(pictures, "hours"),
        _diurnal(analysis),
        _hours(analysis),
        "<h2>The network, or the queue?</h2>",
        _image(pictures, "connect-and-ttft"),
        _image(pictures, "connect-p50"),
        _matrix(analysis, "TCP connect time, median, ms", lambda cell: cell.connect.get(MEDIAN)),
        _matrix(analysis, "TCP connect time, p95, ms", lambda cell: cell.connect.get(TAIL)),
        _matrix(analysis, "TTFT less name, connection and TLS, median, ms: a round trip, the queue, and prefill", lambda cell: cell.answer),
        _matrix(analysis, "The service's own latency for the whole answer, median, ms", lambda cell: cell.service),
        "<h2>Inter-token latency</h2>",
        _image(pictures, "itl-p50"),
        _matrix(analysis, "Mean of a request, median, ms", lambda cell: cell.itl.get(MEDIAN)),
        _matrix(analysis, "Mean of a request, p95, ms", lambda cell: cell.itl.get(TAIL)),
        "<h2>Requests</h2>",
        _counts(analysis),
        _notes(notes),
    ]
    title = escape(", ".join(analysis.samples.campaigns))
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{STYLE}</style>'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _scope(analysis: Analysis) -> str:
    samples = analysis.samples
    begin, end = (datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M") for at_s in (samples.round_at_s[0], samples.round_at_s[-1]))
    requests = sum(pair.requests for pair in samples.pairs.values())
    return (
        f"{counted(requests, 'request')} from {counted(len(samples.probes), 'probe')} to {counted(len(samples.targets), 'target')} "
        f"in {counted(len(samples.round_at_s), 'round')}, "
        f"{begin} to {end} UTC."
    )


def _method(analysis: Analysis) -> str:
    rounds = analysis.rounds
    return (
        "TTFT is the time from resolving the name to the first token, of requests that were answered; a thought is a "
        "token like any other. Inter-token latency is from the first to the last event with text, by the tokens that were streamed. "
        "Brackets: "
        f"{100 * CONFIDENCE:.0f} % intervals by a circular block bootstrap ({len(rounds.counts)} draws of blocks of "
        f"{rounds.block} rounds, the same for all pairs); n: requests. A quantile beyond which fewer than three requests lie is left out. "
        "p of differences: from the same draws, two-sided; p of diurnality: the variance that two harmonics of the day explain, against "
        "blocks of six hours shuffled in time; both corrected for their number by Holm's method."
    )


def _too_few(analysis: Analysis) -> str:
    """Which quantiles are not shown, and what they take."""
    missing = [share for share in SHARES if not any(share in cell.ttft for cell in analysis.cells.values())]
    takes = ", ".join(f"p{100 * share:.0f} takes {least_number(share)}" for share in missing)
    return f"<p>There are too few requests for some quantiles: of each pair, {takes}.</p>" if missing else ""


def _image(pictures: Mapping[str, Path], name: str) -> str:
    if name not in pictures:
        return ""
    data = base64.b64encode(pictures[name].read_bytes()).decode()
    words = PICTURES.get(name, "")
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">' + (f"<p>{escape(words)}</p>" if words else "")


def _matrix(analysis: Analysis, title: str, of: Callable[[Cell], Figure | None]) -> str:
    """Probes down, targets across, each figure with its interval and its n; nothing where there is none."""
    if not any(of(cell) is not None and not math.isnan(figure.value) for cell in analysis.cells.values() if (figure := of(cell))):
        return ""
    head = "".join(f"<th>{escape(target)}</th>" for target in analysis.samples.targets)
    lines = []
    for probe in analysis.samples.probes:
        row = []
        for target in analysis.samples.targets:
            cell = analysis.cells.get((probe, target))
            kind = ' class="home"' if analysis.is_at_home(probe, target) else ""
            row.append(f"<td{kind}>{_figure(of(cell) if cell else None)}</td>")
        lines.append(f"<tr><th>{escape(probe)}</th>{''.join(row)}</tr>")
    return f'<h3>{escape(title)}</h3><div class="wide"><table><tr><th>from \\ to</th>{head}</tr>{"".join(lines)}</table></div>'


def _figure(figure: Figure | None) -> str:
    if figure is None or math.isnan(figure.value):
        return "-"
    span = "" if math.isnan(figure.low) else f"[{_number(figure.low)}, {_number(figure.high)}] "
    return f"{_number(figure.value)}<small>{span}n={figure.n}</small>"


def _number(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.2f}"  # noqa: PLR2004  # three digits are enough


def _comparisons(analysis: Analysis) -> str:
    if not analysis.comparisons:
        return "<p>There is nothing to compare: it takes two targets of one model.</p>"
    rows = []
    for each in sorted(analysis.comparisons, key=lambda each: (each.probe, each.share, -each.gain_s)):
        span = "-" if math.isnan(each.low_s) else f"[{ms(each.low_s)}, {ms(each.high_s)}]"
        cells = (
            each.probe,
            each.home if each.is_at_home else f"{each.home} (the nearest)",
            each.abroad,
            f"p{100 * each.share:.0f}",
            ms(each.gain_s),
            span,
            p_text(each.p),
            "yes" if each.is_sure else "",
        )
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(
        f"<th>{name}</th>" for name in ("from", "home", "abroad", "quantile", "abroad is faster by", "interval", "corrected p", "sure")
    )
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _diurnal(analysis: Analysis) -> str:
    rows = "".join(
        f"<tr><td>{escape(target)}</td><td>{escape(analysis.samples.zones[target])}</td><td>{p_text(diurnal.p)}</td>"
        + ("<td>-</td><td>-</td></tr>" if math.isnan(diurnal.p) else f"<td>{diurnal.ratio:.2f}</td><td>{diurnal.peak_hour:.1f}</td></tr>")
        for target, diurnal in analysis.diurnal.items()
    )
    head = "".join(f"<th>{name}</th>" for name in ("target", "time zone", "diurnal, corrected", "busiest / quietest", "busiest hour"))
    return f"<table><tr>{head}</tr>{rows}</table>"


def _hours(analysis: Analysis) -> str:
    """The numbers behind the picture, folded away."""
    head = "".join(f"<th>{hour}</th>" for hour in HOURS)
    rows = []
    for cell in analysis.cells.values():
        for share in (MEDIAN, 0.9):
            figures = "".join(f"<td>{_figure(cell.hours[hour].get(share))}</td>" for hour in HOURS)
            rows.append(f"<tr><td>{escape(cell.pair.probe)} to {escape(cell.pair.target)}, p{100 * share:.0f}</td>{figures}</tr>")
    table = f'<div class="wide"><table><tr><th>TTFT, ms, by local hour</th>{head}</tr>{"".join(rows)}</table></div>'
    return f"<details><summary>Every hour of every pair</summary>{table}</details>"


def _counts(analysis: Analysis) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("pair", "model", "sent", "answered", "throttled", "failed", "interrupted"))
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _count(pair))}</tr>" for pair in analysis.samples.pairs.values())
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _count(pair: Pair) -> list[str]:
    names = [f"{pair.probe} to {pair.target}", f"{pair.model} (routed)" if pair.routed else pair.model]
    return [*names, *(str(number) for number in (pair.requests, pair.ok, pair.throttled, pair.failed, pair.interrupted))]


def _notes(notes: Sequence[Note]) -> str:
    if not notes:
        return ""
    lines = "".join(
        f"<tr><td>{datetime.fromtimestamp(note.at_s, UTC):%Y-%m-%d %H:%M:%S}</td><td>{escape(note.probe)}</td><td>{escape(note.event)}</td>"
        f"<td>{escape(note.target)}</td><td>{note.count or ''}</td><td>{escape(note.reason)}</td></tr>"
        for note in notes[:MAX_NOTES]
    )
    more = f"<p>and {len(notes) - MAX_NOTES} more</p>" if len(notes) > MAX_NOTES else ""
    head = "".join(f"<th>{name}</th>" for name in ("UTC", "probe", "what", "target", "requests", "reason"))
    return f'<h2>Notes</h2><div class="wide"><table><tr>{head}</tr>{lines}</table></div>{more}'
