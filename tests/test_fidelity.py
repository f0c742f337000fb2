"""The simulator against real runs, by the table that `make fidelity` has written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.fidelity.cells import DRAFT, POLICIES, TARGET, traces_of
from bench.fidelity.page import page
from bench.fidelity.real import Real
from bench.fidelity.rows import FAR, NEAR, Row, distance, fitted, is_within, offloads, simulated

from wanspec.engines.registry import load_backend
from wanspec.lab.bench.policies.cells import policy_of
from wanspec.lab.simulation.own_code import MEASURED_MS

ROOT = Path(__file__).parents[1]
ROWS: list[Row] = json.loads((ROOT / "docs/fidelity.json").read_text("utf-8"))
VALID = [row for row in ROWS if not row["void"]]
DRIFT = 1 / 20


def test_the_page_shows_the_rows() -> None:
    shown = (ROOT / "docs/fidelity.md").read_text("utf-8")
    assert page(ROWS, ROWS[-1]) in shown


def test_the_simulator_is_near_in_nine_cells_of_ten_and_nowhere_far() -> None:
    assert sum(is_within(row, NEAR) for row in VALID) >= 0.9 * len(VALID)
    assert [row for row in VALID if not is_within(row, FAR)] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)  # some three minutes of a core
def test_the_simulator_has_not_moved_away_from_the_table(tmp_path: Path) -> None:
    traces = traces_of((load_backend(TARGET), load_backend(DRAFT)), tmp_path)
    again = [row | {f"simulated_{name}": value for name, value in simulated(row, traces[row["temperature"]]).items()} for row in ROWS]
    moved = []
    for old, new in zip(ROWS, [row | offloads(row, again) for row in again], strict=True):
        latency = new["simulated_itl_ms"] / old["simulated_itl_ms"] - 1.0
        offload = 0.0 if old["rtt_ms"] is None else new["simulated_offload_fraction"] - old["simulated_offload_fraction"]
        if abs(latency) > DRIFT or abs(offload) > DRIFT:
            moved.append((old["policy"], old["rtt_ms"], old["temperature"], old["users"], round(latency, 3), round(offload, 3)))
    assert not moved, f"judge the simulator anew, by make fidelity: {moved}"


def test_the_time_of_our_own_code_has_parts_for_sessions_and_tokens() -> None:
    def real(*passes: tuple[int, int, float]) -> Real:
        return Real("l40s-8b", {}, 0.0, None, {"target": list(passes), "draft": [], "worker": []})

    passes = [(sessions, tokens, 1.0 + 0.5 * sessions + 0.01 * tokens) for sessions in (1, 2, 4) for tokens in (1, 30, 90)]
    assert fitted([real(*passes[:4]), real(*passes[4:])], ("target", "draft")) == pytest.approx([1.0, 0.5, 0.01])
    assert fitted([real((1, 5, 1.0), (1, 10, 2.0))], ("target",)) == pytest.approx([0.0, 0.0, 0.2])
    assert fitted([real((1, 1, 4.0), (4, 1, 1.0))], ("target",))[1] == 0.0  # no session makes a pass shorter
    assert fitted([real()], ("worker",)) == [0.0, 0.0, 0.0]


def test_a_distance_is_a_share_of_the_latency_and_a_part_of_the_offload() -> None:
    row = {"rtt_ms": 15.0, "real_itl_ms": 10.0, "simulated_itl_ms": 10.4, "real_offload_fraction": 0.5, "simulated_offload_fraction": 0.44}
    assert distance(row) == pytest.approx((0.04, -0.06))
    assert not is_within(row, NEAR)
    assert is_within(row, FAR)
    assert is_within(row | {"rtt_ms": None}, NEAR)


def test_the_simulator_is_told_of_the_own_code_of_every_policy_that_is_compared() -> None:
    assert set(MEASURED_MS) >= set(POLICIES)
    for policy, measured in MEASURED_MS.items():
        assert all(value >= 0.0 for value in (*measured.own_code_ms, *measured.worker_own_code_ms)), policy
        assert 0.0 < sum(measured.own_code_ms) < 5.0, policy


@pytest.mark.parametrize("policy", ["paper", "remote"])
def test_policies_are_set_as_in_the_benchmark(policy: str) -> None:
    ours, theirs = POLICIES[policy].config(), policy_of(policy)
    names = ("num_draft_tokens", "branch", "leaves", "worker_entropy_threshold_nats", "controller_entropy_threshold_nats")
    assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]
