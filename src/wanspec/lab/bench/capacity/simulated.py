"""Cells on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from wanspec.errors import WanspecError
from wanspec.lab.bench.capacity.cells import CapacityConfig, Cell, Search, scenario_of, searches_of
from wanspec.lab.bench.capacity.rows import CapacityRow, row_of
from wanspec.lab.simulation.own_code import NONE
from wanspec.lab.simulation.parallel import map_parallel
from wanspec.lab.simulation.run import simulate_traced
from wanspec.lab.simulation.scenario import Policy, Scenario

PATIENCE = 2
"""Depths running that are no better, after which deeper ones are not tried: where users fall out of step, a depth may be bad by itself."""


def simulated(config: CapacityConfig, *, jobs: int) -> Iterator[CapacityRow]:
    """For each of the searches its best row, as they are done."""
    yield from map_parallel(partial(best_found, config.base), searches_of(config), jobs=jobs)


def best_found(base: Scenario, search: Search, *, is_enough: Callable[[CapacityRow], bool] = lambda _: False) -> CapacityRow:
    """The row of the setting with the most tokens a second, or of the first that is enough.

    Wider settings are not tried once a row of the grid is no better than the one before.
    """
    best = best_depth(base, search.cell, search.grid[0], is_enough=is_enough)
    for settings in search.grid[1:]:
        if is_enough(best):
            break
        row = best_depth(base, search.cell, settings, is_enough=is_enough)
        if row.tokens_per_s <= best.tokens_per_s and not is_enough(row):
            break
        best = row
    return best


def best_depth(base: Scenario, cell: Cell, settings: Sequence[Policy], *, is_enough: Callable[[CapacityRow], bool]) -> CapacityRow:
    """The same of one row of a grid: deeper settings are not tried once PATIENCE running were no better."""
    best, no_better = simulate_cell(base, cell, settings[0]), 0
    for setting in settings[1:]:
        if is_enough(best) or no_better == PATIENCE:
            break
        row = simulate_cell(base, cell, setting)
        is_better = row.tokens_per_s > best.tokens_per_s or is_enough(row)
        best, no_better = (row, 0) if is_better else (best, no_better + 1)
    return best


def simulate_cell(base: Scenario, cell: Cell, setting: Policy) -> CapacityRow:
    """Run one setting. Raises WanspecError where a text is not the target's."""
    scenario = scenario_of(base, cell, setting)
    run, records = simulate_traced(scenario)
    if not run.is_exact:
        raise WanspecError(
            f"{cell.policy}, users: {cell.users}, seed {scenario.seed}: other tokens than plain target decoding; this is a bug"
        )
    return row_of(cell, scenario, records, run.metrics, clock="virtual", own_code=scenario.compute.own_code_ms != NONE)
