"""Links that are cut: both ends notice in seconds, busy or idle, and the text is the same."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tests.cluster import Cluster, WanProfile, model_of, plain_decode

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.heartbeat import CONTROLLER_LOST_S, LOST_MIN_S, PING_PERIOD_S
from wanspec.core.speculation.types import SessionId, WorkerId
from wanspec.engines.scripted import ScriptedBackend
from wanspec.lab.simulation.cluster import WorkerSite

PROMPT = [1, 2, 3]
FOREVER = 1e9
LONG = 300.0


def model() -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=32, seed=5)


def cut(site: WorkerSite, begin: float, end: float = LONG) -> None:
    site.up.cut(begin, end)
    site.down.cut(begin, end)


def watched(cluster: Cluster) -> dict[int, float]:
    """When workers are given up, to be."""
    seen: dict[int, float] = {}
    cluster.on_drop = lambda site, _: seen.setdefault(site.worker_id, cluster.queue.now)
    return seen


def idle_until(cluster: Cluster, when: float) -> None:
    cluster.at(when, lambda: None)
    cluster.run(until=when)


def test_an_idle_worker_behind_a_dead_link_is_given_up_in_seconds_and_the_others_stay() -> None:
    cluster = Cluster(model(), model())
    given_up = watched(cluster)
    for _ in range(3):
        cluster.dial_in(model())
    cut(cluster.site(2), 20.5)
    idle_until(cluster, 60.0)
    assert list(given_up) == [2]
    assert given_up[2] - 20.5 <= PING_PERIOD_S + LOST_MIN_S
    assert cluster.dropped[WorkerId(2)] == "it gives no sign of life"
    assert cluster.controller.num_workers == 2


def test_a_worker_leaves_a_controller_that_it_no_longer_hears() -> None:
    cluster = Cluster(model(), model())
    site = cluster.dial_in(model())
    site.down.cut(10.2, LONG)
    left_at = []
    for tenth in range(300):
        idle_until(cluster, tenth / 10)
        if not site.is_alive:
            left_at.append(tenth / 10)
    assert left_at[0] <= 10.2 + CONTROLLER_LOST_S
    assert cluster.controller.num_workers == 0


def test_a_break_of_a_second_costs_nobody_a_worker() -> None:
    cluster = Cluster(model(), model())
    site = cluster.dial_in(model())
    for begin in range(10, 50, 5):
        cut(site, begin, begin + 1.0)
    idle_until(cluster, 60.0)
    assert cluster.controller.num_workers == 1


@pytest.mark.parametrize("policy", ["remote", "adaptive", "paper"])
def test_a_request_whose_worker_is_cut_off_goes_on_at_once_and_elsewhere_soon(policy: str) -> None:
    cluster = Cluster(model(), model(), wan=WanProfile(rtt_s=0.05))
    given_up = watched(cluster)
    site = cluster.dial_in(model())
    cluster.ask(1, PROMPT, max_tokens=600, policy=PolicyConfig(name=policy, branch=1, leaves=1, width=8, lookup=False))
    cluster.at(0.5, lambda: cluster.dial_in(model()))
    cut(site, 1.0)
    cluster.run(until=FOREVER)
    result = cluster.requests[SessionId(1)]
    assert tuple(result.tokens) == plain_decode(model(), PROMPT, max_tokens=600)
    assert given_up[1] - 1.0 <= PING_PERIOD_S + LOST_MIN_S
    assert cluster.opened == {(1, 1), (1, 2)}
    assert model_of(cluster.site(2)).passes > 0
    assert max(later - sooner for sooner, later in pairwise(result.token_times)) < 1.0


def test_a_far_and_unsteady_link_keeps_its_worker() -> None:
    cluster = Cluster(model(), model(), wan=WanProfile(rtt_s=0.8, jitter_s=0.4))
    cluster.dial_in(model())
    idle_until(cluster, 600.0)
    assert cluster.controller.num_workers == 1
