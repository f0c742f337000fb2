"""From files of rows to a folder with a page and its plots.

The page, `report.html`, is one file with its plots inside. It loads nothing, from anywhere, and runs no script.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final

from wanspec.files import write_whole
from wanspec.lab.measurement.analysis import HOURS, SHARES, Analysis, PairFigures, analyse, least_number
from wanspec.lab.measurement.findings import Finding, caveats, findings, ms, p_text
from wanspec.lab.measurement.merge import merged
from wanspec.lab.measurement.pictures import draw_all
from wanspec.lab.measurement.resampling import Estimate
from wanspec.lab.measurement.rows import Note
from wanspec.lab.measurement.samples import read_samples
from wanspec.lab.records.statistics import CONFIDENCE
from wanspec.lab.records.table import counted

MAX_NOTES: Final = 100
"""Notes on the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyReport:
    """What a study comes to."""

    analysis: Analysis
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    notes: tuple[Note, ...]


def make_report(paths: Sequence[Path], *, seed: int = 0) -> StudyReport:
    """Read and compute. Raises ConfigError."""
    with merged(paths) as found:
        analysis = analyse(read_samples(found), seed=seed)
        warnings = caveats(found, analysis)
    return StudyReport(analysis=analysis, findings=tuple(findings(analysis)), warnings=tuple(warnings), notes=tuple(found.notes))


def write_page(report: StudyReport, folder: Path) -> Path:
    """Draw and write, into a folder that is there; returns the page. Raises ConfigError."""
    page = folder / "index.html"
    pictures = draw_all(report.analysis, folder)
    write_whole(page, _render(report, {name: base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items()}))
    return page


def _render(report: StudyReport, pictures: Mapping[str, str]) -> str:
    """`pictures`: PNG in base64, by name."""
    import jinja2  # noqa: PLC0415  # nothing else here needs it

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"ms": ms, "p_text": p_text, "number": _number, "quantile": _quantile, "counted": counted, "utc": _utc}
    environment.filters["isnan"] = environment.tests["isnan"] = math.isnan
    template = environment.from_string((resources.files("wanspec.lab.measurement") / "report.html").read_text("utf-8"))
    analysis, cells = report.analysis, report.analysis.cells
    return template.render(
        report=report,
        analysis=analysis,
        samples=analysis.samples,
        cells=cells,
        pictures=pictures,
        requests=sum(pair.requests for pair in analysis.samples.pairs.values()),
        is_known=lambda of: any((own := of(cell)) is not None and not math.isnan(own.value) for cell in cells.values()),
        comparisons=sorted(analysis.comparisons, key=lambda each: (each.probe, each.share, -each.gain_s)),
        quantiles=[_described(share) for share in SHARES],
        missing=[_described(share) for share in SHARES if not any(share in cell.ttft for cell in cells.values())],
        hours=HOURS,
        connect=partial(_at, "connect"),
        itl=partial(_at, "itl"),
        answer=lambda cell: cell.answer,
        service=lambda cell: cell.service,
        confidence=CONFIDENCE,
        max_notes=MAX_NOTES,
    )


def _at(name: str, share: float) -> Callable[[PairFigures], Estimate | None]:
    """A figure of a pair at a quantile."""
    return lambda cell: getattr(cell, name).get(share)


def _described(share: float) -> dict[str, Any]:
    return {"name": _quantile(share), "least": least_number(share), "ttft": _at("ttft", share)}


def _quantile(share: float) -> str:
    return f"p{100 * share:.0f}"


def _number(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.2f}"  # noqa: PLR2004  # three digits are enough


def _utc(at_s: float, form: str) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime(form)
