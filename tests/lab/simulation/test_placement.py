"""Where requests are drafted for, as time shows what workers are worth."""

from __future__ import annotations

from collections import Counter
from functools import partial

from tests.cluster import Cluster, WanProfile, plain_decode

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import SessionId
from wanspec.engines.scripted import ScriptedBackend

PROMPT = [1, 2, 3]
REQUESTS = 20


def model(disagreement: float = 0.0) -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=64, seed=11, disagreement=disagreement)


def opened_by_worker(cluster: Cluster) -> Counter[int]:
    """Requests one after the other; how many were drafted for where."""
    policy = PolicyConfig(name="remote", branch=1, leaves=1)

    def ask(number: int) -> None:
        if number <= REQUESTS:
            cluster.ask(number, PROMPT, max_tokens=80, policy=policy)

    cluster.on_finish = lambda session_id: ask(session_id + 1)
    cluster.at(1.0, lambda: ask(1))
    cluster.run(until=1e9)
    expected = plain_decode(model(), PROMPT, max_tokens=80)
    assert all(tuple(cluster.requests[SessionId(number)].tokens) == expected for number in range(1, REQUESTS + 1))
    return Counter(worker_id for _, worker_id in cluster.opened)


def test_the_nearer_of_two_good_workers_gets_the_requests() -> None:
    cluster = Cluster(model(), model(), wan=WanProfile(rtt_s=0.25))
    cluster.dial_in(model())
    cluster.wan.rtt_s = 0.015
    cluster.dial_in(model())
    assert opened_by_worker(cluster)[2] >= REQUESTS - 4  # the far one is tried


def test_a_far_worker_that_is_right_is_preferred_to_a_near_one_that_is_wrong() -> None:
    cluster = Cluster(model(), model(), wan=WanProfile(rtt_s=0.015))
    cluster.dial_in(model(disagreement=0.9))
    cluster.wan.rtt_s = 0.1
    cluster.dial_in(model())
    opened = opened_by_worker(cluster)
    assert opened[2] > opened[1]


def test_equal_workers_share_what_comes_at_once() -> None:
    cluster = Cluster(model(), model(), wan=WanProfile(rtt_s=0.03))
    for _ in range(3):
        cluster.dial_in(model())
    for number in range(1, 10):
        cluster.at(1.0, partial(cluster.ask, number, PROMPT, max_tokens=200, policy=PolicyConfig(name="remote")))
    cluster.run(until=1e9)
    assert sorted(Counter(worker_id for _, worker_id in cluster.opened).values()) == [3, 3, 3]
