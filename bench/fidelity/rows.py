"""Both sides of each cell: what was measured, and what the simulator says when it is told of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench.fidelity.cells import MAX_TOKENS, POLICIES, PROMPTS, Cell, Figures, cells, figures_of
from bench.fidelity.real import Log, Real
from msgspec.structs import replace

from wanspec.lab.simulation.run import simulate
from wanspec.lab.simulation.scenario import Compute, LinkSection, Load, Scenario, Tokens

Row = dict[str, Any]
RUNS_IN_DOUBT = 3
"""Real runs of a cell in which the simulator is further off than NEAR."""
SEEDS, VARIATION = 4, 0.02
"""Simulated runs of each cell, and by how much their passes vary, about as real ones do: users fall into step in one and not in another."""
NEAR, FAR = 0.05, 0.10
"""What is wanted of nine cells in ten, and of all: shares of the latency, and parts of the offload."""


def fitted(reals: Iterable[Real], kinds: Sequence[str]) -> list[float]:
    """What passes of these kinds take beyond their pace, in ms: in all, for each session, for each token. Least squares, none below 0."""
    points = np.array([point for real in reals for kind in kinds for point in real.beyond_ms[kind]], float).reshape(-1, 3)
    found, used = np.zeros(3), [0, 1, 2]
    factors = np.column_stack([np.ones(len(points)), points[:, :2]])
    while used and len(points):
        solution = np.linalg.lstsq(factors[:, used], points[:, 2])[0]
        if np.all(solution >= 0.0):
            found[used] = solution
            break
        used.remove(used[int(np.argmin(solution))])
    return [round(float(value), 4) for value in found]


def told(reals: Sequence[Real]) -> dict[str, list[float]]:
    """What the simulator is told of our own code's time, as measured in these runs."""
    return {"own_code_ms": fitted(reals, ("target", "draft")), "worker_own_code_ms": fitted(reals, ("worker",))}


def simulated(row: Row, trace: Path) -> Figures:
    """A row's cell on the virtual clock, told of what the row says was measured: the means over SEEDS runs."""
    scenario = Scenario(
        policy=POLICIES[row["policy"]],
        load=Load(requests=PROMPTS, tokens=MAX_TOKENS, users=row["users"]),
        link=LinkSection(rtt_ms=row["measured_rtt_ms"] or 0.0),
        compute=Compute(preset=row["preset"], variation=VARIATION, **row["told"]),
        tokens=Tokens(model=str(trace)),
        workers=0 if row["rtt_ms"] is None else 1,
    )
    return mean_of([figures_of(simulate(replace(scenario, seed=seed)).metrics) for seed in range(SEEDS)])


def mean_of(runs: Sequence[Figures]) -> Figures:
    """Figure by figure."""
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def rows_of(log: Log, traces: dict[float, Path], kept: Sequence[Row] = ()) -> list[Row]:
    """Both sides of every cell that has run; `kept`: rows of earlier runs, which may hold the chain that offload is related to."""
    rows: list[Row] = []
    counted = {cell: runs for cell in cells() if (runs := log.counted(cell))}
    for cell, runs in counted.items():
        alike = [one for other, others in counted.items() if is_alike(other, cell) for one in others if one.preset == runs[0].preset]
        row: Row = cell._asdict() | {
            "preset": runs[0].preset,
            "runs": len(runs),
            "real_commits": sorted({run.commit for run in runs}),
            "late_share": round(runs[0].late_share, 4),
            "void": runs[0].is_void,
            "measured_rtt_ms": None if cell.rtt_ms is None else float(np.mean([run.rtt_ms for run in runs])),
            "told": told(alike),
            "real_itl_ms_of_all_runs": [run.figures["itl_ms"] for run in runs],
        }
        row |= {f"real_{name}": value for name, value in mean_of([run.figures for run in runs]).items()}
        rows.append(row | {f"simulated_{name}": value for name, value in simulated(row, traces[cell.temperature]).items()})
    return [row | offloads(row, [*rows, *kept]) for row in rows]


def is_alike(one: Cell, other: Cell) -> bool:
    """Whether our own code does the same work in both, for however many users and at whatever distance."""
    return (one.policy, one.temperature, one.rtt_ms is None) == (other.policy, other.temperature, other.rtt_ms is None)


def doubtful(rows: Sequence[Row]) -> list[tuple[str, Cell]]:
    """Cells, with their pace, in which simulator and reality are far apart and reality was asked once: it varies too."""
    return [
        (row["preset"], Cell(**{name: row[name] for name in Cell._fields}))
        for row in rows
        if not (row["void"] or is_within(row, NEAR) or row["runs"] >= RUNS_IN_DOUBT)
    ]


def offloads(row: Row, rows: Sequence[Row]) -> Row:
    """Each side's offload fraction: one less local draft passes, of those of the chain for as many users. None without a worker."""
    chain = next(one for one in rows if one["policy"] == "colocated" and all(one[name] == row[name] for name in ("temperature", "users")))
    name = "local_draft_passes_per_token"
    values = {side: 1.0 - row[f"{side}_{name}"] / chain[f"{side}_{name}"] for side in ("real", "simulated")}
    return {f"{side}_offload_fraction": None if row["rtt_ms"] is None else value for side, value in values.items()}


def distance(row: Row) -> tuple[float, float]:
    """How far the simulator is off: in latency, as a share, and in the offload fraction."""
    latency = row["simulated_itl_ms"] / row["real_itl_ms"] - 1.0
    return latency, 0.0 if row["rtt_ms"] is None else row["simulated_offload_fraction"] - row["real_offload_fraction"]


def is_within(row: Row, limit: float) -> bool:
    """Whether neither is further off."""
    return all(abs(value) <= limit for value in distance(row))
