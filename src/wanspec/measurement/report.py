"""From files of rows to a folder with a page and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wanspec.errors import ConfigError
from wanspec.measurement.analysis import Analysis, analyse
from wanspec.measurement.figures import draw_all
from wanspec.measurement.findings import Finding, caveats, findings
from wanspec.measurement.merge import merged
from wanspec.measurement.page import render
from wanspec.measurement.samples import read_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was made."""

    page: Path
    analysis: Analysis
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]


def write_report(paths: Sequence[Path], folder: Path, *, seed: int = 0) -> Report:
    """Read, compute, draw, write. Raises ConfigError. `folder` must be there."""
    with merged(paths) as found:
        analysis = analyse(read_samples(found), seed=seed)
        answers, warnings, notes = findings(analysis), caveats(found, analysis), found.notes
    page = folder / "index.html"
    pictures = draw_all(analysis, folder)
    try:
        page.write_text(render(analysis, answers, warnings, notes, pictures), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {page}: {error.strerror}; name a folder that you can write to") from error
    return Report(page=page, analysis=analysis, findings=tuple(answers), warnings=tuple(warnings))
