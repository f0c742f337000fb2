"""Workers of a scenario lose their controller and come again, as real ones do."""

from __future__ import annotations

from wanspec.core.protocol.heartbeat import CONTROLLER_LOST_S
from wanspec.core.protocol.redial import FIRST_REDIAL_S, MAX_REDIAL_S
from wanspec.lab.simulation.run import Stage, play, simulate
from wanspec.lab.simulation.scenario import Scenario, parse
from wanspec.lab.simulation.workers import HANDSHAKE_RTTS, TURNED_AWAY_S
from wanspec.telemetry.trace import Trace
from wanspec.transport.quarantine import FIRST_QUARANTINE_S

RTT_S = 0.03


def scenario(*faults: dict[str, object], tokens: int = 1500, **sections: object) -> Scenario:
    document: dict[str, object] = {
        "load": {"requests": 1, "tokens": tokens},
        "link": {"rtt_ms": 1e3 * RTT_S},
        "policy": {"name": "remote"},
        "faults": list(faults),
        "compute": {"own_code_ms": [0, 0, 0], "worker_own_code_ms": [0, 0, 0]},
    }
    return parse(document | sections)


def test_a_worker_whose_way_was_cut_drafts_again_after_it() -> None:
    document = {"load": {"requests": 20}, "policy": {"name": "adaptive"}, "link": {"rtt_ms": 15}}
    cut = {"kind": "partition", "at_ms": 500, "duration_ms": 5000}
    always, for_a_time = simulate(parse(document)), simulate(parse(document | {"faults": [cut]}))
    assert for_a_time.is_exact
    assert len(for_a_time.dropped) == 1
    drafts = [run.metrics.worker_draft_passes for run in (always, for_a_time)]
    assert drafts[1] > 0.6 * drafts[0]  # it was away for a quarter of the time


def test_it_comes_back_within_half_a_minute_of_the_end_and_not_before() -> None:
    begin_s, length_s = 1.0, 8.0
    stage = play(scenario({"kind": "partition", "at_ms": 1e3 * begin_s, "duration_ms": 1e3 * length_s}), Trace())
    (worker,) = stage.workers
    assert worker.redials == 1
    back_at = worker.connected_at
    assert begin_s + length_s < back_at < begin_s + length_s + MAX_REDIAL_S
    assert worker.site.machine.num_sessions == 0
    assert worker.site.is_alive


def test_a_worker_that_broke_the_rules_is_turned_away_as_long_as_a_real_one() -> None:
    assert TURNED_AWAY_S == FIRST_QUARANTINE_S
    stage = play(scenario({"kind": "garbage", "at_ms": 500.0}), Trace())
    (worker,) = stage.workers
    assert worker.redials >= 1
    assert worker.connected_at > 0.5 + TURNED_AWAY_S
    assert len(stage.cluster.dropped) == worker.redials + (not worker.site.is_alive)


def test_a_crashed_worker_is_gone_for_good_even_between_two_connections() -> None:
    cut, crash = {"kind": "partition", "at_ms": 500.0, "duration_ms": 5000.0}, {"kind": "crash", "at_ms": 5000.0}
    stage = play(scenario(cut, crash), Trace())
    (worker,) = stage.workers
    assert (worker.is_running, worker.redials) == (False, 0)
    assert stage.faults == {"partition": 1, "crash": 1}


def test_a_fault_befalls_the_worker_and_not_its_first_connection() -> None:
    cut, crash = {"kind": "partition", "at_ms": 500.0, "duration_ms": 2000.0}, {"kind": "crash", "at_ms": 20_000.0}
    stage = play(scenario(cut, crash), Trace())
    (worker,) = stage.workers
    assert (worker.is_running, worker.redials) == (False, 1)
    assert not worker.site.is_alive


def test_a_worker_that_hears_nothing_leaves_and_dials_again_at_once() -> None:
    far_s = 1.0
    stage = Stage(scenario(link={"rtt_ms": 1e3 * far_s}), Trace())
    stage.add_worker()
    (worker,) = stage.workers
    worker.site.down.cut(0.0, CONTROLLER_LOST_S)
    stage.add_request()
    stage.cluster.run(until=CONTROLLER_LOST_S + 5.0)
    assert not stage.cluster.dropped
    assert worker.redials == 1
    back_s = worker.connected_at - CONTROLLER_LOST_S - HANDSHAKE_RTTS * far_s
    assert FIRST_REDIAL_S / 2 <= back_s <= 1.0


def test_a_worker_that_was_dropped_over_a_dead_way_gives_up_when_it_would_have_anyway() -> None:
    stage = Stage(scenario(), Trace())
    stage.add_worker()
    (worker,) = stage.workers
    worker.site.down.cut(0.0, CONTROLLER_LOST_S)
    stage.add_request()
    stage.cluster.run(until=CONTROLLER_LOST_S + 5.0)
    assert len(stage.cluster.dropped) == 1
    back_s = worker.connected_at - CONTROLLER_LOST_S - HANDSHAKE_RTTS * RTT_S
    assert FIRST_REDIAL_S / 2 <= back_s <= FIRST_REDIAL_S
