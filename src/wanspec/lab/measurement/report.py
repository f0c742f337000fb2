"""From files of rows to a folder with a page and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wanspec.files import write_whole
from wanspec.lab.measurement.analysis import Analysis, analyse
from wanspec.lab.measurement.figures import draw_all
from wanspec.lab.measurement.findings import Finding, caveats, findings
from wanspec.lab.measurement.merge import merged
from wanspec.lab.measurement.page import render
from wanspec.lab.measurement.rows import Note
from wanspec.lab.measurement.samples import read_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a study comes to."""

    analysis: Analysis
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    notes: tuple[Note, ...]


def make_report(paths: Sequence[Path], *, seed: int = 0) -> Report:
    """Read and compute. Raises ConfigError."""
    with merged(paths) as found:
        analysis = analyse(read_samples(found), seed=seed)
        warnings = caveats(found, analysis)
    return Report(analysis=analysis, findings=tuple(findings(analysis)), warnings=tuple(warnings), notes=tuple(found.notes))


def write_page(report: Report, folder: Path) -> Path:
    """Draw and write, into a folder that is there; returns the page. Raises ConfigError."""
    page = folder / "index.html"
    pictures = draw_all(report.analysis, folder)
    write_whole(page, render(report.analysis, report.findings, report.warnings, report.notes, pictures))
    return page
