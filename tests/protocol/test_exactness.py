"""The oracle: whatever the policy, the network and the workers do, the tokens are those of plain target decoding."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import pytest
from tests.cluster import Cluster, WanProfile, model_of, plain_decode, stall

from wanspec.backends.scripted import ScriptedBackend
from wanspec.policy.registry import PolicyConfig, policy_names
from wanspec.protocol.placement import ANYWHERE, Placement
from wanspec.speculation.types import SamplingParams, SessionId, WorkerId

SEEDS = 200
FOREVER = 1e9
PLACEMENTS = [ANYWHERE, ANYWHERE, Placement(offload=False), Placement(labels=("region=eu",)), Placement(labels=("region=eu", "region=us"))]
POLICIES = [
    *(PolicyConfig(name=name) for name in policy_names()),
    PolicyConfig(name="paper", num_draft_tokens=4, branch=3, leaves=4, staleness="prose", worker_entropy_threshold_nats=0.0),
]


def random_schedule(seed: int, policy: PolicyConfig) -> None:
    """One cluster under chance's rule: link, models, requests, crashes, newcomers, cancellations."""
    rng = random.Random(f"{seed}/{policy.name}")
    model_seed, disagreement = rng.randrange(1 << 30), rng.choice([0.0, 0.1, 0.3, 1.0])
    end_token = rng.choice([None, 0, 3])
    vocabulary_size = rng.choice([4, 32])  # with four tokens, text repeats itself and lookups hit
    policy = replace(
        policy,
        width=rng.choice([1, 8, 64]),
        verify_width=rng.choice([1, 7, 32]),
        path_prob_min=rng.choice([1e-5, 1e-3, 0.1]),
        redundancy_price_s=rng.choice([0.0, 0.01, math.inf]),
    )

    def model(own: float) -> ScriptedBackend:
        return ScriptedBackend(vocabulary_size=vocabulary_size, seed=model_seed, disagreement=own, end_token=end_token)

    target, draft = model(0.0), model(disagreement)
    wan = WanProfile(rtt_s=rng.uniform(0.0, 0.3), jitter_s=rng.choice([0.0, 0.005, 0.1]), duplicate=rng.choice([0.0, 0.2]))
    cluster = Cluster(target, draft, seed=seed, wan=wan)
    carried = {}

    def dial_in() -> None:
        labels = rng.choice([(), ("region=eu",), ("region=us",)])
        carried[cluster.dial_in(model(disagreement), max_sessions=rng.choice([1, 8]), labels=labels).worker_id] = labels

    for _ in range(1, rng.randint(1, 4)):
        dial_in()
    requests = {}
    placements = {}
    arrives_at = 0.0
    for session_id in range(1, rng.randint(2, 5)):
        prompt = [rng.randrange(vocabulary_size) for _ in range(rng.randint(1, 12))] * rng.choice([1, 1, 3])
        max_tokens = rng.randint(1, 40)
        sampling = SamplingParams(temperature=rng.choice([0.0, 0.8]), top_k=rng.choice([0, 5]), seed=rng.randrange(1 << 60))
        requests[session_id] = (prompt, max_tokens, sampling)
        arrives_at += rng.uniform(0.0, 0.5)
        placement = placements[session_id] = rng.choice(PLACEMENTS)
        request = partial(
            cluster.ask, session_id, prompt, max_tokens=max_tokens, policy=policy, sampling=sampling, placement=placement
        )
        cluster.at(arrives_at, request)
    for site in cluster.workers.values():
        if rng.random() < 0.5:
            cluster.at(rng.uniform(0.0, 1.5), partial(cluster.crash, site))
        elif rng.random() < 0.2:
            cluster.at(rng.uniform(0.0, 1.0), partial(stall, site))
    cluster.at(rng.uniform(0.2, 2.0), dial_in)
    cancelled = rng.choice([None, 1])
    if cancelled:
        cluster.at(rng.uniform(0.5, 1.0), partial(cluster.cancel, 1))
    cluster.run(until=FOREVER)

    for session_id, (prompt, max_tokens, sampling) in requests.items():
        expected = plain_decode(target, prompt, max_tokens=max_tokens, sampling=sampling)
        result = cluster.requests[SessionId(session_id)]
        if result.reason == "cancelled":
            assert session_id == cancelled
            assert tuple(result.tokens) == expected[: len(result.tokens)]
        else:
            assert tuple(result.tokens) == expected
            assert result.reason == ("end" if expected[-1] == end_token else "length")
    assert all(placements[session_id].allows(carried[WorkerId(worker_id)]) for session_id, worker_id in cluster.opened)
    assert cluster.controller.num_sessions == target.open_sessions == draft.open_sessions == 0
    assert not [reason for reason in cluster.dropped.values() if "unanswered" not in reason]
    for site in cluster.workers.values():
        if site.is_alive and not site.stalled_until:
            assert site.machine.num_sessions == 0
            backend = model_of(site).backend
            assert isinstance(backend, ScriptedBackend)
            assert backend.open_sessions == 0


@pytest.mark.timeout(600)  # 200 schedules: a minute on a busy machine
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.name}-{policy.num_draft_tokens}")
def test_tokens_equal_plain_decoding_under_any_schedule(policy: PolicyConfig) -> None:
    for seed in range(SEEDS):
        try:
            random_schedule(seed, policy)
        except BaseException as error:
            error.add_note(f"replay: random_schedule({seed}, {policy})")
            raise
