"""A worker that lies within the rules: no text changes, and with `adaptive` it costs next to nothing against no worker at all."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

import pytest
from msgspec.structs import replace

from wanspec.core.protocol.messages import MAX_HELD_S, MAX_STEP_S, Commit, Drafts, Message
from wanspec.core.speculation.types import NodeId, WorkerId
from wanspec.lab.simulation import cluster
from wanspec.lab.simulation.run import SimulatedRun, simulate
from wanspec.lab.simulation.scenario import parse

VOCABULARY = 97
"""Below the simulated one."""
FAR_AHEAD = 1_000_000_000
TOLERANCE = 1.05
chance = random.Random(5)


def random_and_certain(drafts: Drafts) -> Drafts:
    return replace(drafts, tokens=tuple(chance.randrange(VOCABULARY) for _ in drafts.tokens), log_probs=(0.0,) * len(drafts.tokens))


def far_ahead(drafts: Drafts) -> Drafts:
    parent_ids = tuple(parent_id + FAR_AHEAD if parent_id else 0 for parent_id in drafts.parent_ids)
    return replace(drafts, first_node_id=NodeId(drafts.first_node_id + FAR_AHEAD), parent_ids=parent_ids)


def quick(drafts: Drafts) -> Drafts:
    return replace(drafts, step_s=1e-6)


def slow(drafts: Drafts) -> Drafts:
    return replace(drafts, step_s=MAX_STEP_S)


def next_door(drafts: Drafts) -> Drafts:
    return replace(drafts, held_s=MAX_HELD_S)


def mute(drafts: Drafts) -> Drafts:
    return replace(drafts, parent_ids=(), tokens=(), log_probs=())


def quick_next_door_and_wrong(drafts: Drafts) -> Drafts:
    return quick(next_door(random_and_certain(drafts)))


def quick_next_door_and_mute(drafts: Drafts) -> Drafts:
    return quick(next_door(mute(drafts)))


def modest(drafts: Drafts) -> Drafts:
    return replace(drafts, log_probs=(-15.9,) * len(drafts.tokens))


def upside_down(drafts: Drafts) -> Drafts:
    """The surer, the less probable it says it is."""
    return replace(drafts, log_probs=tuple(max(-15.9, -1.0 / (0.01 - log_prob)) for log_prob in drafts.log_probs))


def at_random(drafts: Drafts) -> Drafts:
    return replace(drafts, log_probs=tuple(-15.9 * chance.random() for _ in drafts.log_probs))


LIES = [random_and_certain, far_ahead, quick, slow, next_door, mute, quick_next_door_and_wrong, quick_next_door_and_mute]
SUPPRESSIONS = [modest, upside_down, at_random]


def run(rtt_ms: float, *, workers: int) -> SimulatedRun:
    document: dict[str, object] = {
        "load": {"requests": 4, "tokens": 150},
        "link": {"rtt_ms": rtt_ms},
        "policy": {"name": "adaptive"},
        "compute": {"preset": "h100-70b", "own_code_ms": [0, 0, 0], "worker_own_code_ms": [0, 0, 0]},
        "workers": workers,
    }
    if workers:
        document["faults"] = [{"kind": "garbage", "is_subtle": True, "at_ms": 0.0}]
    return simulate(parse(document))


@lru_cache
def itl_ms_alone() -> float:
    itl_ms = run(0.0, workers=0).metrics.itl_ms
    assert itl_ms is not None
    return itl_ms


def deaf_to_acknowledgements(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lie about ids makes the controller acknowledge would be no news to a liar; the honest machine beneath would object."""
    send_down = cluster.Cluster._send_down

    def send(self: cluster.Cluster, worker_id: WorkerId, message: Message, now: float) -> None:
        if isinstance(message, Commit):
            message = replace(message, newest_node_id=max(0, message.newest_node_id - FAR_AHEAD))
        send_down(self, worker_id, message, now)

    monkeypatch.setattr(cluster.Cluster, "_send_down", send)


@pytest.mark.parametrize(
    ("lie", "rtt_ms"),
    [*((lie, 2.0) for lie in (*LIES, *SUPPRESSIONS)), (random_and_certain, 30.0), (upside_down, 30.0)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_liar_changes_no_text_and_costs_hardly_any_time(
    lie: Callable[[Drafts], Drafts], rtt_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance.seed(5)
    monkeypatch.setattr("wanspec.lab.simulation.workers.nonsense", lie)
    if lie is far_ahead:
        deaf_to_acknowledgements(monkeypatch)
    result = run(rtt_ms, workers=1)
    assert result.is_exact
    assert not result.dropped
    assert result.metrics.itl_ms is not None
    assert result.metrics.itl_ms <= TOLERANCE * itl_ms_alone()
