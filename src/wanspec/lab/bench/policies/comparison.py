"""The table of a benchmark, from its runs.

A figure is the median over the repeats of a cell, each repeat's figure being that of all its prompts. A ratio sets each run beside the
baseline's of the same repeat, for what ran at about the same time is alike: it is the sum over prompts and repeats of the one by that of
the other, and its interval is of this ratio, by how the prompts differ (`records.statistics`). Void runs are counted and left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from wanspec.lab.bench.policies.cells import RIVALS, TREE, BenchConfig, BenchLink, Cell, setting_of
from wanspec.lab.records.metrics import RunMetrics, RunRow
from wanspec.lab.records.run_names import ALONE, CHAIN
from wanspec.lab.records.statistics import Interval, median, ratio, ratio_interval
from wanspec.telemetry.reliability import ReliabilityBins, calibration_error, merged

SEARCH = -1
"""The repeat that the runs of a search count as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """Every prompt once in one cell."""

    cell: Cell
    repeat: int
    metrics: RunMetrics
    """The figures of all prompts together."""
    by_prompt: tuple[RunMetrics, ...]
    is_exact: bool
    """Every token equals plain target decoding."""
    is_void: bool
    """The emulated link was too late: the figures do not count."""
    lateness_ms_p99: float | None
    passes: int
    """The controller's passes."""
    late_passes: int
    """The controller's passes that could not keep the preset's pace."""
    worker_step_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow(RunRow):
    """One line of the table: the demo's keys, then these. Counts (passes, tokens) are those of one repeat."""

    itl_ratio_interval: Interval | None
    """95 %, for other prompts like these; None with a single one."""
    itl_ratio_tree: float | None
    """Inter-token latency / that of the best co-located tree."""
    itl_ratio_tree_interval: Interval | None
    itl_ratio_alone_interval: Interval | None
    moved_of_alone: float | None
    """1 - controller draft passes / those of `alone`."""
    best_alone: str | None
    """The fastest of what one site can do (`plan.RIVALS`), as far as it was measured."""
    itl_ratio_best: float | None
    """Inter-token latency / that one's."""
    itl_ratio_best_interval: Interval | None
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
            rivals = _rivals(cell.temperature, cells, runs)
            links = [cell.link] if cell.link else config.links
            rows += [_row(config, cell, link, own, rivals) for link in links]
    return rows


def reliability_of(cells: Iterable[Cell], runs: Sequence[MeasuredRun]) -> ReliabilityBins | None:
    """The estimates of all runs in these cells; None where there are none."""
    wanted = set(cells)
    parts = [run.metrics.reliability for run in runs if run.cell in wanted and not run.is_void]
    return merged(parts) if parts else None


def _rivals(temperature: float, cells: Sequence[Cell], runs: Sequence[MeasuredRun]) -> dict[str, dict[int, MeasuredRun]]:
    """By name, what one site can do at this temperature, as far as it was measured: its runs by repeat."""
    found: dict[str, dict[int, MeasuredRun]] = {}
    for name in RIVALS:
        own = {cell for cell in cells if (cell.name, cell.temperature) == (name, temperature)}
        by_repeat = {run.repeat: run for run in runs if run.cell in own}
        if by_repeat:
            found[name] = by_repeat
    return found


def _fastest(rivals: dict[str, dict[int, MeasuredRun]]) -> str | None:
    """The name of the one with the least latency."""
    itl_ms = {name: median(run.metrics.itl_ms for run in _counted(own.values())) for name, own in rivals.items()}
    return min((name for name in itl_ms if itl_ms[name] is not None), key=lambda name: itl_ms[name] or 0.0, default=None)


def _counted(runs: Iterable[MeasuredRun]) -> list[MeasuredRun]:
    """Those whose figures count: of the search only where there is no other."""
    valid = [run for run in runs if not run.is_void]
    return [run for run in valid if run.repeat != SEARCH] or valid


def _row(
    config: BenchConfig, cell: Cell, link: BenchLink, own: Sequence[MeasuredRun], rivals: dict[str, dict[int, MeasuredRun]]
) -> BenchRow:  # fmt: skip
    counted, best = _counted(own), _fastest(rivals)
    pairs = {name: _paired(counted, rivals.get(name, {})) for name in RIVALS}
    of_chain, of_tree, of_alone = (_itl_against(pairs[name]) for name in (CHAIN, TREE, ALONE))
    of_best = _itl_against(pairs[best]) if best else (None, None)
    offload, offload_interval = _offload(pairs[CHAIN])
    metrics = [run.metrics for run in counted]
    lateness = [run.lateness_ms_p99 for run in counted if run.lateness_ms_p99 is not None]
    return BenchRow(
        policy=cell.name,
        rtt_ms=link.rtt_ms,
        itl_ms=median(each.itl_ms for each in metrics),
        itl_ratio=of_chain[0],
        itl_ratio_alone=of_alone[0],
        controller_draft_passes=_median_count(each.controller_draft_passes for each in metrics),
        local_draft_passes_per_token=ratio(sum(each.controller_draft_passes for each in metrics), sum(each.tokens for each in metrics)),
        offload_fraction=offload,
        worker_draft_passes=_median_count(each.worker_draft_passes for each in metrics),
        bytes_per_token=median(each.bytes_per_token for each in metrics),
        identical=all(run.is_exact for run in own),
        tokens=_median_count(each.tokens for each in metrics),
        itl_ratio_interval=of_chain[1],
        itl_ratio_tree=of_tree[0],
        itl_ratio_tree_interval=of_tree[1],
        itl_ratio_alone_interval=of_alone[1],
        moved_of_alone=_offload(pairs[ALONE])[0],
        best_alone=best,
        itl_ratio_best=of_best[0],
        itl_ratio_best_interval=of_best[1],
        offload_interval=offload_interval,
        ttft_ms=median(each.ttft_ms for each in metrics),
        controller_busy_s_per_token=median(each.controller_busy_s_per_token for each in metrics),
        mean_acceptance_length=median(each.mean_acceptance_length for each in metrics),
        calibration_error=calibration_error(merged([each.reliability for each in metrics])),
        overhead_ms_per_round_p95=median(each.overhead_ms_per_round_p95 for each in metrics),
        late_fraction=ratio(sum(run.late_passes for run in counted), sum(run.passes for run in counted)),
        worker_step_ms=median(run.worker_step_ms for run in counted),
        lateness_ms_p99=max(lateness, default=None),
        loss=link.loss,
        temperature=cell.temperature,
        preset=config.preset,
        seed=config.seed,
        setting=setting_of(cell.policy),
        repeats=len(counted),
        void_runs=sum(run.is_void for run in own),
    )


def _paired(runs: Sequence[MeasuredRun], base: dict[int, MeasuredRun]) -> list[tuple[MeasuredRun, MeasuredRun]]:
    """Each run with the baseline's of the same repeat, or of the search where that has not been run."""
    pairs = [(run, base.get(run.repeat, base.get(SEARCH))) for run in runs]
    return [(run, other) for run, other in pairs if other is not None]


def _sums(
    pairs: Sequence[tuple[MeasuredRun, MeasuredRun]], figure: Callable[[RunMetrics], float | None]
) -> tuple[list[float], list[float]]:
    """For each prompt, summed over its repeats, the figure under a policy and under the baseline; where both are defined."""
    own: defaultdict[int, float] = defaultdict(float)
    base: defaultdict[int, float] = defaultdict(float)
    for run, other in pairs:
        for prompt, both in enumerate(zip(map(figure, run.by_prompt), map(figure, other.by_prompt), strict=True)):
            left, right = both
            if left is not None and right is not None:
                own[prompt] += left
                base[prompt] += right
    return [own[prompt] for prompt in own], [base[prompt] for prompt in own]


def _itl_against(pairs: Sequence[tuple[MeasuredRun, MeasuredRun]]) -> tuple[float | None, Interval | None]:
    """Inter-token latency / that of the baseline, and its interval."""
    own, base = _sums(pairs, lambda metrics: metrics.itl_ms)
    return ratio(sum(own), sum(base)), ratio_interval(own, base)


def _offload(pairs: Sequence[tuple[MeasuredRun, MeasuredRun]]) -> tuple[float | None, Interval | None]:
    """1 - draft passes here / those of the baseline, where both wrote the same, and its interval."""
    alike = [(run, base) for run, base in pairs if run.metrics.outputs == base.metrics.outputs]
    own, base = _sums(alike, lambda metrics: metrics.controller_draft_passes)
    used, interval = ratio(sum(own), sum(base)), ratio_interval(own, base)
    return (None if used is None else 1 - used), (None if interval is None else (1 - interval[1], 1 - interval[0]))


def _median_count(values: Iterable[int]) -> int:
    """The lower median, so that it is a count that was seen; 0 without values."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0
