"""The table of a benchmark, from its runs.

A figure is the median over the repeats of a cell, each repeat's figure being that of all its prompts. A ratio is taken within a repeat:
what ran at about the same time is alike. Void runs are counted and left out. The intervals are percentile bootstrap intervals over
(prompt, repeat) pairs, drawn for both sides of a ratio at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wanspec.telemetry.metrics import RunMetrics, RunRow
from wanspec.telemetry.reliability import ReliabilityBins, calibration_error, merged
from wanspec.testbed.bench.plan import CHAIN, TREE, BenchConfig, Cell, Link, setting_of

SEARCH = -1
"""The repeat that the runs of a search count as."""
RESAMPLES = 1000
CONFIDENCE = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """Every prompt once in one cell."""

    cell: Cell
    repeat: int
    metrics: RunMetrics
    """Of all prompts together."""
    by_prompt: tuple[RunMetrics, ...]
    is_exact: bool
    """Every token equals plain target decoding."""
    is_void: bool
    """The emulated link was too late: the figures do not count."""
    lateness_ms_p99: float | None
    passes: int
    """Of the controller,"""
    late_passes: int
    """and those of them that could not keep the preset's pace."""
    worker_step_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow(RunRow):
    """One line of the table: the demo's keys, then these. Counts (passes, tokens) are those of one repeat."""

    itl_ratio_interval: Interval | None
    """95 %, bootstrap over (prompt, repeat)."""
    itl_ratio_tree: float | None
    """Inter-token latency / that of the best co-located tree."""
    itl_ratio_tree_interval: Interval | None
    offload_interval: Interval | None
    ttft_ms: float | None
    controller_busy_s_per_token: float | None
    mean_acceptance_length: float | None
    calibration_error: float | None
    """Over all repeats together."""
    overhead_ms_per_round_p95: float | None
    """CPU time of the controller's event loop thread; see `ControllerEngine`."""
    late_fraction: float | None
    """The controller's passes that could not keep the preset's pace / all; more than a few, and the figures do not count."""
    worker_step_ms: float | None
    """Median time of a worker's draft pass: the preset's, and what our own code adds between two passes."""
    lateness_ms_p99: float | None
    """Of the emulated link; the worst of the runs that count."""
    loss: float | None
    temperature: float
    preset: str
    seed: int
    setting: str
    """The policy's parameters."""
    repeats: int
    """Runs that count."""
    void_runs: int
    """Runs that do not, for the emulated link was too late."""


def rows_of(config: BenchConfig, cells: Sequence[Cell], runs: Sequence[MeasuredRun]) -> list[BenchRow]:
    """A row for each cell that was run; one for each link where a cell has none. `runs`: those of the search among them."""
    rows = []
    for cell in cells:
        own = [run for run in runs if run.cell == cell]
        if own:
            chain, tree = (_baseline(name, cell, cells, runs) for name in (CHAIN, TREE))
            links = [cell.link] if cell.link else config.links
            rows += [_row(config, cell, link, own, chain, tree) for link in links]
    return rows


def reliability_of(cells: Iterable[Cell], runs: Sequence[MeasuredRun]) -> ReliabilityBins | None:
    """The estimates of all runs in these cells; None where there are none."""
    wanted = set(cells)
    parts = [run.metrics.reliability for run in runs if run.cell in wanted and not run.is_void]
    return merged(parts) if parts else None


def _baseline(name: str, cell: Cell, cells: Sequence[Cell], runs: Sequence[MeasuredRun]) -> dict[int, MeasuredRun]:
    """The runs of the best chain or tree at this temperature, by repeat."""
    own = {candidate for candidate in cells if candidate.policy.name == name and candidate.temperature == cell.temperature}
    return {run.repeat: run for run in runs if run.cell in own}


def _row(
    config: BenchConfig, cell: Cell, link: Link, own: Sequence[MeasuredRun],
    chain: dict[int, MeasuredRun], tree: dict[int, MeasuredRun],
) -> BenchRow:  # fmt: skip
    valid = [run for run in own if not run.is_void]
    counted = [run for run in valid if run.repeat != SEARCH] or valid
    to_chain, to_tree = _paired(counted, chain), _paired(counted, tree)
    metrics = [run.metrics for run in counted]
    lateness = [run.lateness_ms_p99 for run in counted if run.lateness_ms_p99 is not None]
    return BenchRow(
        policy=cell.policy.name,
        rtt_ms=link.rtt_ms,
        itl_ms=_median(each.itl_ms for each in metrics),
        itl_ratio=_median(_itl_ratio(*pair) for pair in to_chain),
        controller_draft_passes=_median_count(each.controller_draft_passes for each in metrics),
        offload_fraction=_median(_offload(*pair) for pair in to_chain),
        worker_draft_passes=_median_count(each.worker_draft_passes for each in metrics),
        bytes_per_token=_median(each.bytes_per_token for each in metrics),
        identical=all(run.is_exact for run in own),
        tokens=_median_count(each.tokens for each in metrics),
        itl_ratio_interval=_interval(to_chain, _itl_ms, _ratio),
        itl_ratio_tree=_median(_itl_ratio(*pair) for pair in to_tree),
        itl_ratio_tree_interval=_interval(to_tree, _itl_ms, _ratio),
        offload_interval=_interval(to_chain, lambda run: float(run.controller_draft_passes), lambda part, whole: 1 - _ratio(part, whole)),
        ttft_ms=_median(each.ttft_ms for each in metrics),
        controller_busy_s_per_token=_median(each.controller_busy_s_per_token for each in metrics),
        mean_acceptance_length=_median(each.mean_acceptance_length for each in metrics),
        calibration_error=calibration_error(merged([each.reliability for each in metrics])),
        overhead_ms_per_round_p95=_median(each.overhead_ms_per_round_p95 for each in metrics),
        late_fraction=_share(sum(run.late_passes for run in counted), sum(run.passes for run in counted)),
        worker_step_ms=_median(run.worker_step_ms for run in counted),
        lateness_ms_p99=max(lateness, default=None),
        loss=link.loss,
        temperature=cell.temperature,
        preset=config.preset,
        seed=config.seed,
        setting=setting_of(cell.policy),
        repeats=len(counted),
        void_runs=len(own) - len(valid),
    )


def _paired(runs: Sequence[MeasuredRun], base: dict[int, MeasuredRun]) -> list[tuple[MeasuredRun, MeasuredRun]]:
    """Each run with the baseline's of the same repeat, or of the search where that has not been run."""
    pairs = [(run, base.get(run.repeat, base.get(SEARCH))) for run in runs]
    return [(run, other) for run, other in pairs if other is not None]


def _itl_ratio(run: MeasuredRun, base: MeasuredRun) -> float | None:
    return _share(run.metrics.itl_ms, base.metrics.itl_ms)


def _offload(run: MeasuredRun, base: MeasuredRun) -> float | None:
    used = _share(run.metrics.controller_draft_passes, base.metrics.controller_draft_passes)
    return 1 - used if used is not None and run.metrics.outputs == base.metrics.outputs else None


def _itl_ms(run: RunMetrics) -> float | None:
    return run.itl_ms


def _interval(
    pairs: Sequence[tuple[MeasuredRun, MeasuredRun]],
    figure: Callable[[RunMetrics], float | None],
    combine: Callable[[Any, Any], Any],
) -> Interval | None:
    """Bootstrap over prompts and repeats of combine(sum of the run's figures, sum of the baseline's)."""
    both = [
        (figure(run), figure(base)) for pair in pairs for run, base in zip(pair[0].by_prompt, pair[1].by_prompt, strict=True)
    ]  # fmt: skip
    defined = np.array([(left, right) for left, right in both if left is not None and right is not None], dtype=float)
    if not len(defined) or not defined[:, 1].all():
        return None
    drawn = defined[np.random.default_rng(0).integers(len(defined), size=(RESAMPLES, len(defined)))].sum(axis=1)
    low, high = np.quantile(combine(drawn[:, 0], drawn[:, 1]), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _ratio(part: Any, whole: Any) -> Any:  # noqa: ANN401  # arrays or numbers
    return part / whole


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _median(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.median(defined)) if defined else None


def _median_count(values: Iterable[int]) -> int:
    """The lower median, so that it is a count that was seen; 0 without values."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0
