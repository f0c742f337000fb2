"""Whole scenarios: exact, reproducible, and with figures that follow from the settings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache

import msgspec
import pytest

from wanspec.lab.records.run_names import run_names
from wanspec.lab.simulation.own_code import MEASURED_MS, timed
from wanspec.lab.simulation.run import play, simulate
from wanspec.lab.simulation.scenario import ORACLE, Scenario, parse
from wanspec.lab.simulation.soak import FAULT_KINDS, failures_of, random_scenario, soak
from wanspec.telemetry.records import PassFinished, PassStarted
from wanspec.telemetry.trace import Trace

FAST = {"preset": "h100-70b", "own_code_ms": [0, 0, 0], "worker_own_code_ms": [0, 0, 0]}
"""Five draft steps to a target step."""


def scenario(**sections: object) -> Scenario:
    return parse({"policy": {"name": "adaptive"}, "load": {"requests": 4, "tokens": 60}} | sections)


@pytest.mark.parametrize("name", [*run_names(), ORACLE])
@pytest.mark.parametrize("rtt_ms", [0, 40])
def test_every_policy_writes_what_plain_decoding_writes(name: str, rtt_ms: float) -> None:
    run = simulate(scenario(policy={"name": name}, link={"rtt_ms": rtt_ms}))
    assert run.is_exact
    assert run.metrics.tokens == 240


def test_alone_is_adaptive_without_a_worker_however_many_there_are() -> None:
    alone = scenario(policy={"name": "alone"}, workers=2, faults=[{"kind": "crash", "at_ms": 1.0}])
    assert (alone.workers, alone.faults) == (0, ())
    own, adaptive = simulate(alone).metrics, simulate(scenario(workers=0)).metrics
    assert (own.policy, adaptive.policy) == ("alone", "adaptive")
    assert replace(own, policy="adaptive") == adaptive


def test_a_run_is_a_function_of_its_seed() -> None:
    link = {"rtt_ms": 30, "jitter_ms": 3, "loss": 0.02}
    first, again, other = (simulate(scenario(link=link, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_plain_decoding_takes_a_target_step_a_token() -> None:
    run = simulate(scenario(policy={"name": "autoregressive"}, compute=FAST))
    assert run.metrics.itl_ms == pytest.approx(17.0)


def test_a_worker_that_is_never_wrong_costs_a_target_step_for_k_and_one_tokens() -> None:
    run = simulate(scenario(load={"requests": 2, "tokens": 300}, policy={"name": ORACLE, "k": 3}, link={"rtt_ms": 0}, compute=FAST))
    assert run.metrics.itl_ms == pytest.approx(17.0 / 4, rel=0.05)
    assert run.metrics.acceptance_rate == 1.0


def test_the_round_trip_costs_what_the_paper_says_it_costs() -> None:
    ratios = [simulate(scenario(link={"rtt_ms": rtt})).metrics.itl_ms for rtt in (0, 20, 70)]
    assert ratios == sorted(ratios)  # type: ignore[type-var]
    passes = [simulate(scenario(link={"rtt_ms": rtt})).metrics.controller_draft_passes for rtt in (0, 20, 70)]
    assert passes == sorted(passes)


@pytest.mark.parametrize("name", [*run_names(), ORACLE])
def test_our_own_code_takes_the_time_that_was_measured_unless_the_scenario_says_another(name: str) -> None:
    own, workers = MEASURED_MS[name].own_code_ms, MEASURED_MS[name].worker_own_code_ms
    known = scenario(policy={"name": name})
    assert (timed(known).own_code_ms, timed(known).worker_own_code_ms) == (own, workers)
    told = timed(scenario(policy={"name": name}, compute={"own_code_ms": [1, 2, 3]}))
    assert (told.own_code_ms, told.worker_own_code_ms) == ((1.0, 2.0, 3.0), workers)
    longer = simulate(scenario(policy={"name": name}, compute={"own_code_ms": [5, 0, 0], "worker_own_code_ms": [0, 0, 0]}))
    assert longer.is_exact
    assert longer.metrics.itl_ms > simulate(scenario(policy={"name": name}, compute={"own_code_ms": [0, 0, 0]})).metrics.itl_ms  # type: ignore[operator]


def test_adaptive_without_a_worker_takes_the_time_of_alone() -> None:
    assert timed(scenario(workers=0)).own_code_ms == MEASURED_MS["alone"].own_code_ms


def test_many_users_share_passes() -> None:
    paper = {"name": "paper"}
    alone = simulate(scenario(load={"requests": 8, "tokens": 100}, policy=paper))
    together = simulate(scenario(load={"requests": 8, "tokens": 100, "users": 8}, policy=paper))
    assert together.is_exact
    assert together.metrics.controller_target_passes < alone.metrics.controller_target_passes / 3
    assert together.duration_s < alone.duration_s / 3


def test_poisson_arrivals_are_all_served() -> None:
    run = simulate(scenario(load={"requests": 12, "tokens": 20, "arrivals": "poisson", "requests_per_s": 5.0}, workers=2))
    assert run.is_exact
    assert run.metrics.tokens == 240


def overlapping(trace: Trace) -> bool:
    """Whether a target pass and a local draft pass ever ran at the same time."""
    open_models: set[str] = set()
    for record in trace.records:
        if isinstance(record, PassStarted) and record.site == "controller":
            open_models.add(record.model)
        elif isinstance(record, PassFinished) and record.site == "controller":
            open_models.discard(record.model)
        if len(open_models) == 2:
            return True
    return False


@pytest.mark.parametrize("draft_device", [False, True])
def test_target_and_local_drafts_share_a_device_unless_told_otherwise(*, draft_device: bool) -> None:
    trace = Trace()
    load = {"requests": 8, "tokens": 40, "users": 4}
    stage = play(scenario(load=load, policy={"name": "colocated"}, compute={"draft_device": draft_device}), trace)
    assert not failures_of(stage)
    assert overlapping(trace) == draft_device


def test_drafts_by_datagram_get_lost_and_the_text_is_the_same() -> None:
    run = simulate(scenario(link={"rtt_ms": 20, "loss": 0.2, "transport": "datagram", "jitter_ms": 5}))
    assert run.is_exact
    assert not run.dropped


def fault(kind: str, **fields: object) -> dict[str, object]:
    return {"kind": kind, "at_ms": 200.0} | fields


@pytest.mark.parametrize(
    "faults",
    [
        [fault("crash")],
        [fault("crash"), fault("join", at_ms=400.0)],
        [fault("stall", duration_ms=20_000.0)],
        [fault("garbage")],
        [fault("garbage", is_subtle=True)],
        [fault("partition", duration_ms=20_000.0)],
        [fault("slow", factor=50.0)],
    ],
    ids=lambda faults: "+".join(str(entry["kind"]) for entry in faults),
)
def test_a_fault_costs_time_and_never_text(faults: list[dict[str, object]]) -> None:
    trace = Trace()
    stage = play(scenario(faults=faults), trace)
    assert not failures_of(stage)
    assert stage.faults.total() == len(faults)


def test_a_worker_that_breaks_the_protocol_is_dropped_with_a_reason() -> None:
    run = simulate(scenario(faults=[fault("garbage")]))
    assert len(run.dropped) == 1
    assert "only" in run.dropped[0]


soaked = lru_cache(soak)
SEEDS = range(24)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_wrong_or_left_after_random_trouble(seed: int) -> None:
    assert soaked(seed).failures == ()


def test_random_trouble_is_of_every_kind() -> None:
    counts: Counter[str] = sum((soaked(seed).counts for seed in SEEDS), Counter())
    assert {*FAULT_KINDS, "workers dropped", "messages retransmitted", "messages lost"} <= set(counts)


def test_the_soak_notices_a_wrong_token_and_a_leak() -> None:
    stage = play(random_scenario(0), Trace())
    session_id = next(iter(stage.texts))
    stage.cluster.requests[session_id].tokens[3] += 1
    stage.cluster.bytes_in_flight += 5
    found = failures_of(stage)
    assert found == [f"session {session_id} has other tokens than plain target decoding", "5 bytes in flight left at the end"]


def test_a_hang_is_reported_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.controller.Controller._verify_finished", lambda *_, **__: [])
    result = soak(0)
    assert "seed 0" in result.failures[0]
    assert "hangs" in result.failures[0]


def test_a_random_scenario_is_a_function_of_its_seed() -> None:
    assert msgspec.json.encode(random_scenario(3)) == msgspec.json.encode(random_scenario(3))
    assert random_scenario(3) != random_scenario(4)
