"""Sweeps: every combination of the values asked for, several seeds each, set beside what one site does alone with the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from wanspec.errors import ConfigError
from wanspec.lab.records.metrics import RunRow, compare
from wanspec.lab.records.plots import Point, TradeOff, plot_trade_offs
from wanspec.lab.records.run_names import ADAPTIVE, ALONE, CHAIN
from wanspec.lab.records.statistics import median, median_interval
from wanspec.lab.simulation.parallel import map_parallel
from wanspec.lab.simulation.run import SimulatedRun, simulate
from wanspec.lab.simulation.scenario import LinkSection, Policy, Scenario, expand

PHI, RTT = "policy.phi", "link.rtt_ms"
STYLES = ("-", "--")
"""Of lines, in turn; each is thinner than the one before, too: a line that lies on another lets it be seen."""
WIDEST, NARROWEST, NARROWER = 3.2, 1.2, 0.5
"""Widths of lines, in points."""
FIGURES = ("itl_ms", "itl_ratio", "itl_ratio_alone", "local_draft_passes_per_token", "offload_fraction", "bytes_per_token")
COUNTS = ("controller_draft_passes", "worker_draft_passes")
"""Fields of a row that the table shows as medians over seeds."""
BANDS = "bands: 95 % interval of the median over seeds"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRow(RunRow):
    """One run of a sweep."""

    preset: str
    seed: int
    point: Mapping[str, Any]
    """The values of the swept parameters, by dotted path."""
    scenario: Scenario
    """What was run, whole."""

    def flat(self) -> dict[str, Any]:
        """As one JSON object: the same keys as a real run's row, then preset, seed and the swept parameters, last the scenario."""
        fields = asdict(self)
        scenario = msgspec.to_builtins(fields.pop("scenario"))
        swept = {name: value for name, value in fields.pop("point").items() if name not in {"policy.name", "link.rtt_ms"}}
        return fields | swept | {"scenario": scenario}


class Sweep:
    """What is to be run; iterate over `rows()` to run it."""

    def __init__(self, document: Mapping[str, Any], *, iterations: int, jobs: int = -1, backend: str = "loky") -> None:
        """`document`: a scenario, with lists where a parameter is swept. Raises ConfigError."""
        if iterations < 1:
            raise ConfigError(f"iterations is {iterations}; give at least 1")
        self._jobs, self._backend = jobs, backend
        self._points = [
            (point, msgspec.structs.replace(scenario, seed=scenario.seed + iteration))
            for point, scenario in expand(document)
            for iteration in range(iterations)
        ]
        scenarios = [*(rival for _, scenario in self._points for rival in rivals_of(scenario)), *self.scenarios]
        self._unique = {_key(scenario): scenario for scenario in scenarios}

    def __len__(self) -> int:
        """Runs, those of the rivals included."""
        return len(self._unique)

    @property
    def scenarios(self) -> list[Scenario]:
        """Every scenario asked for, without its rivals."""
        return [scenario for _, scenario in self._points]

    def runs(self) -> Iterator[tuple[str, SimulatedRun]]:
        """Run everything; each run as it is done."""
        yield from zip(
            self._unique, map_parallel(simulate, list(self._unique.values()), jobs=self._jobs, backend=self._backend), strict=True
        )

    def rows(self, runs: Mapping[str, SimulatedRun]) -> list[SimulatedRow]:
        """The table, from all that `runs()` gave."""
        return [
            row_of(point, scenario, runs[_key(scenario)], [runs[_key(rival)] for rival in rivals_of(scenario)])
            for point, scenario in self._points
        ]


def rivals_of(scenario: Scenario) -> tuple[Scenario, Scenario]:
    """What the controller's site does by itself, with the same tokens and devices: a chain of the same depth k, and `alone`.

    `alone` is set as `adaptive` is, where the scenario is one of it. A chain always has a draft model.
    """
    own = scenario.policy
    chain = Policy(name=CHAIN, k=own.k)
    alone = msgspec.structs.replace(own, name=ALONE) if own.name in {ADAPTIVE, ALONE} else Policy(name=ALONE)
    at_one_site = msgspec.structs.replace(scenario, link=LinkSection(), workers=0, faults=())
    compute = msgspec.structs.replace(scenario.compute, local_draft=True)
    return msgspec.structs.replace(at_one_site, policy=chain, compute=compute), msgspec.structs.replace(at_one_site, policy=alone)


def row_of(point: Mapping[str, Any], scenario: Scenario, run: SimulatedRun, rivals: Sequence[SimulatedRun]) -> SimulatedRow:
    """One line of the table."""
    *_, row = compare([*(rival.metrics for rival in rivals), run.metrics], rtt_ms=scenario.link.rtt_ms)
    fields = {name: getattr(row, name) for name in RunRow.__dataclass_fields__} | {"identical": run.is_exact}
    return SimulatedRow(**fields, preset=scenario.compute.preset, seed=scenario.seed, point=point, scenario=scenario)


def median_rows(rows: Sequence[SimulatedRow]) -> list[SimulatedRow]:
    """One row for each combination: medians over its seeds; `identical` only if all are."""
    groups: dict[str, list[SimulatedRow]] = {}
    for row in rows:
        groups.setdefault(repr((row.policy, row.rtt_ms, row.point)), []).append(row)
    return [replace(group[0], identical=all(row.identical for row in group), **_medians_of(group)) for group in groups.values()]


def _medians_of(rows: Sequence[SimulatedRow]) -> dict[str, Any]:
    figures = {name: median([getattr(row, name) for row in rows]) for name in (*FIGURES, *COUNTS)}
    return figures | {name: round(figures[name] or 0.0) for name in COUNTS}


def title_of(scenarios: Sequence[Scenario]) -> str:
    """What these runs have in common, for a person; what differs is listed."""

    def each(of: Callable[[Scenario], object]) -> str:
        return " / ".join(dict.fromkeys(str(of(scenario)) for scenario in scenarios))

    load = f"requests: {each(lambda run: run.load.requests)} of {each(lambda run: run.load.tokens)} tokens"
    compute = each(lambda run: run.compute.preset if run.compute.target_ms is None else "measured step times")
    seeds = len({scenario.seed for scenario in scenarios})
    return f"{load}, {compute}, {each(lambda run: run.tokens.model)}, {seeds} seed{'s' * (seeds != 1)}"


def plot_against_rtt(rows: Sequence[SimulatedRow], path: Path, *, title: str, bound: Mapping[float, float] | None = None) -> None:
    """Latency and offload against the round trip, a line per policy; `bound`: the most that can be moved, by RTT in ms."""
    curves = _trade_offs(rows, lambda row: _label(row, leaving_out={RTT}), lambda row: row.rtt_ms)
    plot_trade_offs(curves, path, against="round trip (ms)", title=f"{title}\n{BANDS}", bound=bound)


def plot_phi(rows: Sequence[SimulatedRow], path: Path, *, title: str, unit: str = "nats") -> None:
    """Latency and offload against phi, a line per round trip. `unit`: of phi in the rows."""
    curves = _trade_offs(rows, lambda row: f"{_label(row, leaving_out={PHI, RTT})}, {row.rtt_ms:g} ms", lambda row: row.point[PHI])
    plot_trade_offs(curves, path, against=f"phi ({unit})", title=f"{title}\n{BANDS}")


def _trade_offs(
    rows: Sequence[SimulatedRow], label_of: Callable[[SimulatedRow], str], x_of: Callable[[SimulatedRow], float | None]
) -> list[TradeOff]:
    groups: dict[str, list[SimulatedRow]] = {}
    for row in rows:
        groups.setdefault(label_of(row), []).append(row)
    return [
        TradeOff(
            label,
            _medians([(x_of(row), row.itl_ratio) for row in group]),
            _medians([(x_of(row), row.offload_fraction) for row in group]),
            {"linestyle": STYLES[number % len(STYLES)], "linewidth": max(NARROWEST, WIDEST - NARROWER * number)},
        )
        for number, (label, group) in enumerate(groups.items())
    ]


def _medians(pairs: Sequence[tuple[float | None, float | None]]) -> list[Point]:
    """At each x the median of the figures there, and its interval."""
    values: dict[float, list[float]] = {}
    for x, y in pairs:
        if x is not None and y is not None:
            values.setdefault(x, []).append(y)
    return [(x, median(ys), median_interval(ys)) for x, ys in values.items()]


def _label(row: SimulatedRow, *, leaving_out: set[str]) -> str:
    others = [f"{name.rpartition('.')[2]} {value}" for name, value in row.point.items() if name not in {"policy.name", *leaving_out}]
    return ", ".join([row.policy, *others])


def _key(scenario: Scenario) -> str:
    return msgspec.json.encode(scenario).decode()
