"""The paper's evaluation: every run is of the policy that it is shown under."""

from __future__ import annotations

from collections import Counter

import pytest

from wanspec.lab.records.statistics import median
from wanspec.lab.simulation import paper
from wanspec.lab.simulation.paper import READINGS, VARIANTS, Reading, evaluate
from wanspec.lab.simulation.run import SimulatedRun, simulate
from wanspec.lab.simulation.scenario import Scenario

RTT_MS = 20.0
BEST = Reading(k=4, s=2, first_three="paper")
"""The reading whose figures come closest to the published ones, docs/simulation.md."""


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Scenario]:
    """Every scenario that is run, rivals included; what one run comes to stands for all."""
    scenarios: list[Scenario] = []
    any_run = simulate(paper.cloud_scenario(BEST, rtt_ms=15.0, seed=0))

    def record(scenario: Scenario) -> SimulatedRun:
        scenarios.append(scenario)
        return any_run

    monkeypatch.setattr(paper, "simulate", record)
    monkeypatch.setattr(paper, "_rival", record)
    return scenarios


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.text)
def test_every_scenario_of_a_reading_runs_the_policy_that_it_names(reading: Reading, played: list[Scenario]) -> None:
    evaluate((reading, (RTT_MS,), 1))
    runs = [scenario for scenario in played if scenario.workers]
    figure_7, cloud = runs[: len(VARIANTS)], runs[len(VARIANTS) :]
    first = reading.first_three
    assert [scenario.policy.name for scenario in figure_7] == [first, first, first, "paper"]
    assert [(scenario.policy.k, scenario.policy.b) for scenario in figure_7] == [(reading.k, 1), *[(reading.k, 2)] * 3]
    assert {scenario.link.rtt_ms for scenario in figure_7} == {RTT_MS}
    assert [(scenario.policy.name, scenario.policy.k, scenario.policy.b, scenario.link.rtt_ms) for scenario in cloud] == [
        ("paper", 2, 1, 15.0),
        ("paper", 2, 1, 70.0),
    ]
    assert {scenario.policy.staleness for scenario in runs} == {reading.staleness}


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.text)
def test_all_is_relative_to_a_chain_of_the_same_depth_without_a_worker(reading: Reading, played: list[Scenario]) -> None:
    evaluate((reading, (RTT_MS,), 1))
    chains = Counter((scenario.policy.name, scenario.policy.k) for scenario in played if scenario.policy.name == "colocated")
    assert chains == Counter({("colocated", reading.k): len(VARIANTS)}) + Counter({("colocated", 2): len(paper.CLOUD_RTTS_MS)})


def test_figure_8_sweeps_phi_of_the_papers_policy(played: list[Scenario]) -> None:
    points = list(paper.run_figure_8(BEST, jobs=1, backend="loky"))
    runs = [scenario for scenario in played if scenario.workers]
    assert len(points) == len(paper.FIGURE_8_PHIS) * len(paper.FIGURE_8_RTTS_MS)
    assert {scenario.policy.name for scenario in runs} == {"paper"}
    assert sorted({scenario.policy.phi for scenario in runs}) == list(paper.FIGURE_8_PHIS)


def test_the_clouds_worker_takes_over_a_third_at_15_ms_and_costs_nothing() -> None:
    rows = paper.rows_with_rivals([paper.cloud_scenario(BEST, rtt_ms=15.0, seed=seed) for seed in range(paper.ITERATIONS)], {})
    assert {row.policy for row in rows} == {"paper"}
    assert median(row.offload_fraction for row in rows) == pytest.approx(0.34, abs=0.02)
    assert median(row.itl_ratio for row in rows) == pytest.approx(0.95, abs=0.02)
