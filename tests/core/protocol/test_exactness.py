"""The oracle: whatever the policy, the network and the workers do, the tokens are those of plain target decoding."""

from __future__ import annotations

import math
import os
import random
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
from tests.cluster import Cluster, WanProfile, model_of, plain_decode, stall

from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.effects import DropWorker
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.speculation.types import SamplingParams, SessionId, WorkerId
from wanspec.engines.scripted import ScriptedBackend
from wanspec.lab.simulation.cluster import WorkerSite
from wanspec.lab.simulation.workers import impossible
from wanspec.transport.quarantine import Quarantine

SEEDS = int(os.environ.get("TEST_SEEDS", "40"))
"""Schedules of each policy; `make test-all` asks for 200."""
FOREVER = 1e9
PLACEMENTS = [ANYWHERE, ANYWHERE, Placement(offload=False), Placement(labels=("region=eu",)), Placement(labels=("region=eu", "region=us"))]
POLICIES = [
    *(PolicyConfig(name=name) for name in POLICY_NAMES),
    PolicyConfig(name="paper", num_draft_tokens=4, branch=3, leaves=4, staleness="prose", worker_entropy_threshold_nats=0.0),
]


class Asked(NamedTuple):
    """A request of a schedule."""

    prompt: list[int]
    max_tokens: int
    sampling: SamplingParams
    placement: Placement


class Schedule:
    """One cluster under chance's rule: link, models, requests, crashes, stalls, lies, newcomers, cancellations."""

    def __init__(self, seed: int, policy: PolicyConfig, *, has_draft_model: bool = True) -> None:
        rng = self.rng = random.Random(f"{seed}/{policy.name}")
        self.model_seed, self.disagreement = rng.randrange(1 << 30), rng.choice([0.0, 0.1, 0.3, 1.0])
        self.end_tokens = rng.choice([(), (0,), (0, 3)])
        self.vocabulary_size = rng.choice([4, 32])  # with four tokens, text repeats itself and lookups hit
        self.policy = replace(
            policy,
            width=rng.choice([1, 8, 64]),
            verify_width=rng.choice([1, 7, 32]),
            path_prob_min=rng.choice([1e-5, 1e-3, 0.1]),
            redundancy_price_s=rng.choice([0.0, 0.01, math.inf]),
        )
        self.target = self.model(0.0)
        self.draft = self.model(self.disagreement) if has_draft_model else None
        wan = WanProfile(rtt_s=rng.uniform(0.0, 0.3), jitter_s=rng.choice([0.0, 0.005, 0.1]), duplicate=rng.choice([0.0, 0.2]))
        self.cluster = Cluster(self.target, self.draft, seed=seed, wan=wan)
        self.cluster.on_drop = self.redial
        self.quarantine = Quarantine()
        self.labels: dict[WorkerId, tuple[str, ...]] = {}
        self.asked: dict[int, Asked] = {}
        self.cancelled = rng.choice([None, 1])

    def model(self, own: float) -> ScriptedBackend:
        return ScriptedBackend(vocabulary_size=self.vocabulary_size, seed=self.model_seed, disagreement=own, end_tokens=self.end_tokens)

    def dial_in(self) -> None:
        labels = self.rng.choice([(), ("region=eu",), ("region=us",)])
        own = self.rng.choice([self.disagreement, self.disagreement, 0.0, 1.0])  # another model than the controller's, perhaps
        site = self.cluster.dial_in(self.model(own), max_sessions=self.rng.choice([1, 8]), labels=labels)
        self.labels[site.worker_id] = labels

    def redial(self, site: WorkerSite, drop: DropWorker) -> None:
        """A worker that was dropped comes again when it is let in."""
        name, now = f"worker-{len(self.labels)}", self.cluster.queue.now
        self.cluster.at(now + self.quarantine.add(name, drop.reason, now=now), self.dial_in)

    def begin(self) -> None:
        rng, cluster = self.rng, self.cluster
        for _ in range(1, rng.randint(1, 4)):
            self.dial_in()
        arrives_at = 0.0
        for session_id in range(1, rng.randint(2, 5)):
            prompt = [rng.randrange(self.vocabulary_size) for _ in range(rng.randint(1, 12))] * rng.choice([1, 1, 3])
            sampling = SamplingParams(temperature=rng.choice([0.0, 0.8]), top_k=rng.choice([0, 5]), seed=rng.randrange(1 << 60))
            self.asked[session_id] = asked = Asked(prompt, rng.randint(1, 40), sampling, rng.choice(PLACEMENTS))
            arrives_at += rng.uniform(0.0, 0.5)
            cluster.at(arrives_at, partial(cluster.ask, session_id, policy=self.policy, **asked._asdict()))
        for site in cluster.workers.values():
            fate = rng.random()
            if fate < 0.5:
                cluster.at(rng.uniform(0.0, 1.5), partial(cluster.crash, site))
            elif fate < 0.6:
                cluster.at(rng.uniform(0.0, 1.0), partial(stall, site))
            elif fate < 0.8:
                cluster.at(rng.uniform(0.0, 1.0), partial(setattr, site, "mangle", impossible))
        cluster.at(rng.uniform(0.2, 2.0), self.dial_in)
        if self.cancelled:
            cluster.at(rng.uniform(0.5, 1.0), partial(cluster.cancel, 1))

    def check(self) -> None:
        cluster = self.cluster
        for session_id, (prompt, max_tokens, sampling, _) in self.asked.items():
            expected = plain_decode(self.target, prompt, max_tokens=max_tokens, sampling=sampling)
            result = cluster.requests[SessionId(session_id)]
            if result.reason == "cancelled":
                assert session_id == self.cancelled
                assert tuple(result.tokens) == expected[: len(result.tokens)]
            else:
                assert tuple(result.tokens) == expected
                assert result.reason == ("end" if expected[-1] in self.end_tokens else "length")
        assert all(self.asked[session_id].placement.allows(self.labels[WorkerId(worker_id)]) for session_id, worker_id in cluster.opened)
        assert cluster.controller.num_sessions == self.target.open_sessions == 0
        assert self.draft is None or self.draft.open_sessions == 0
        assert all("unanswered" in reason or "it acknowledges" in reason for reason in cluster.dropped.values())
        for site in cluster.workers.values():
            if site.is_alive and not site.stalled_until:
                assert site.machine.num_sessions == 0
                backend = model_of(site).backend
                assert isinstance(backend, ScriptedBackend)
                assert backend.open_sessions == 0


def random_schedule(seed: int, policy: PolicyConfig, *, has_draft_model: bool = True) -> None:
    schedule = Schedule(seed, policy, has_draft_model=has_draft_model)
    schedule.begin()
    schedule.cluster.run(until=FOREVER)
    schedule.check()


@pytest.mark.timeout(600)  # 200 schedules take a minute on a busy machine
@pytest.mark.parametrize("has_draft_model", [True, False], ids=["", "no-draft-model"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.name}-{policy.num_draft_tokens}")
def test_tokens_equal_plain_decoding_under_any_schedule(policy: PolicyConfig, *, has_draft_model: bool) -> None:
    for seed in range(SEEDS):
        try:
            random_schedule(seed, policy, has_draft_model=has_draft_model)
        except BaseException as error:
            error.add_note(f"replay: random_schedule({seed}, {policy}, has_draft_model={has_draft_model})")
            raise
