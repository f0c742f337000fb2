"""Speed and offload in virtual time. Two trees that drift apart break no exactness test; they lose drafts, and these tests notice."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec import structs
from tests.cluster import Cluster, WanProfile, model_of, plain_decode, stall

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.messages import Drafts
from wanspec.core.speculation.types import SessionId, WorkerId
from wanspec.engines.scripted import ScriptedBackend
from wanspec.lab.simulation.link import Transport

PROMPT = [1, 2, 3, 4, 5]
TOKENS = 200
TRUSTING = 1e9


def model(disagreement: float = 0.0) -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=64, seed=11, disagreement=disagreement)


def chain(name: str, *, controller_entropy_threshold_nats: float = 0.5) -> PolicyConfig:
    """No branches: the scripted models' confidence says nothing about their agreement, so that branching would only spread drafts."""
    return PolicyConfig(name=name, branch=1, leaves=1, controller_entropy_threshold_nats=controller_entropy_threshold_nats)


def run(policy: PolicyConfig, *, rtt_s: float = 0.07, disagreement: float = 0.0, workers: int = 1) -> Cluster:
    cluster = Cluster(model(), model(disagreement), wan=WanProfile(rtt_s=rtt_s))
    for _ in range(workers):
        cluster.dial_in(model(disagreement))
    cluster.ask(1, PROMPT, max_tokens=TOKENS, policy=policy)
    cluster.run(until=1e9)
    assert tuple(cluster.requests[SessionId(1)].tokens) == plain_decode(model(), PROMPT, max_tokens=TOKENS)
    return cluster


def itl_s(cluster: Cluster) -> float:
    times = cluster.requests[SessionId(1)].token_times
    return (times[-1] - times[0]) / (len(times) - 1)


@pytest.mark.parametrize("name", ["remote", "paper"])
def test_a_worker_that_is_never_wrong_makes_every_draft(name: str) -> None:
    policy = chain(name, controller_entropy_threshold_nats=TRUSTING)
    cluster = run(policy)
    # Only while the worker cannot have answered yet, at the beginning, may the controller draft for itself: one RTT is nine steps.
    assert cluster.controller_draft_passes <= (0 if name == "remote" else 14)
    # Three tokens a round of one target step, after the first round trip.
    assert itl_s(cluster) < 1.15 * 0.0234 / 3
    assert cluster.stale <= policy.max_depth  # those beyond the end of the text


def test_a_worker_that_errs_still_takes_drafts_away_on_a_short_link() -> None:
    colocated = run(PolicyConfig(name="colocated"), disagreement=0.2)
    paper = run(chain("paper", controller_entropy_threshold_nats=TRUSTING), rtt_s=0.015, disagreement=0.2)
    assert paper.controller_draft_passes < 0.75 * colocated.controller_draft_passes
    assert itl_s(paper) < 1.02 * itl_s(colocated)


def test_most_of_what_an_agreeing_worker_sends_joins_although_the_head_moves_meanwhile() -> None:
    cluster = run(PolicyConfig(name="remote", num_draft_tokens=2, branch=1, leaves=1), disagreement=0.1)
    assert cluster.joined > 0.5 * (cluster.joined + cluster.stale)


def test_the_round_trip_is_worked_out_from_the_acknowledgements() -> None:
    cluster = run(PolicyConfig(name="remote"))
    assert min(cluster.rtts) == pytest.approx(0.07, abs=1e-3)
    assert max(cluster.rtts) == pytest.approx(0.07, abs=1e-3)


def test_without_a_worker_the_paper_drafts_locally_as_colocated_does() -> None:
    colocated = run(PolicyConfig(name="colocated"), disagreement=0.2, workers=0)
    paper = run(PolicyConfig(name="paper"), disagreement=0.2, workers=0)
    assert paper.controller_draft_passes == colocated.controller_draft_passes
    assert itl_s(paper) == pytest.approx(itl_s(colocated))


def test_a_datagram_link_that_lost_all_that_was_under_way_carries_drafts_again() -> None:
    cluster = Cluster(model(), model(), seed=1)
    cluster.wan.transport = Transport.DATAGRAM
    site = cluster.dial_in(model())
    cluster.ask(1, PROMPT, max_tokens=600, policy=PolicyConfig(name="adaptive", width=128, lookup=False))
    site.up.cut(1.0, 3.5)
    cluster.run(until=4.0)
    before = cluster.joined
    cluster.run(until=1e9)
    assert site.up.lost > 0
    assert cluster.joined - before > 1000


def test_garbage_costs_speed_and_never_text() -> None:
    cluster = Cluster(model(), model())
    site = cluster.dial_in(model())
    site.mangle = lambda drafts: structs.replace(drafts, tokens=tuple((token * 7 + 1) % 64 for token in drafts.tokens))
    cluster.ask(1, PROMPT, max_tokens=60, policy=PolicyConfig(name="paper"))
    cluster.run(until=1e9)
    assert tuple(cluster.requests[SessionId(1)].tokens) == plain_decode(model(), PROMPT, max_tokens=60)
    assert not cluster.dropped


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"base_position": 5000}, "acknowledges position 5000"),
        ({"session_id": 77}, "session 77, which never was"),
        ({"tokens": (64,), "parent_ids": (0,), "log_probs": (0.0,)}, "drafted token 64, but the vocabulary has 64"),
    ],
)
def test_a_worker_that_breaks_the_protocol_is_dropped_with_the_reason(change: dict[str, object], reason: str) -> None:
    cluster = Cluster(model(), model())
    site = cluster.dial_in(model())

    def lie(drafts: Drafts) -> Drafts:
        return structs.replace(drafts, **change)

    site.mangle = lie
    cluster.ask(1, PROMPT, max_tokens=40, policy=PolicyConfig(name="paper"))
    cluster.run(until=1e9)
    assert reason in cluster.dropped[WorkerId(1)]
    assert tuple(cluster.requests[SessionId(1)].tokens) == plain_decode(model(), PROMPT, max_tokens=40)


def test_a_worker_whose_passes_do_not_end_is_not_waited_for_and_another_takes_over() -> None:
    """It still says that it is at work, as one does that computes a long prompt: that is no reason to drop it."""
    cluster = Cluster(model(), model(), target_step_s=0.1)
    stall(cluster.dial_in(model()))
    cluster.ask(1, PROMPT, max_tokens=300, policy=PolicyConfig(name="remote"))
    cluster.at(5.0, lambda: cluster.dial_in(model()))
    cluster.run(until=1e9)
    assert not cluster.dropped
    assert model_of(cluster.site(2)).passes > 0
    times = cluster.requests[SessionId(1)].token_times
    early = [b - a for a, b in pairwise(times[20:80])]
    assert max(early) < 0.12  # plain decoding, not one patience after another


def test_a_stalled_worker_has_to_rest_and_another_takes_over() -> None:
    cluster = Cluster(model(), model(), target_step_s=0.01)
    stall(cluster.dial_in(model()))
    cluster.ask(1, PROMPT, max_tokens=1800, policy=PolicyConfig(name="remote"))
    cluster.at(2.0, lambda: cluster.dial_in(model()))
    cluster.run(until=1e9)  # the rest ends while nobody needs a worker
    assert not cluster.dropped
    assert model_of(cluster.site(2)).passes > 0


@pytest.mark.parametrize("name", ["remote", "paper"])
def test_a_worker_that_answers_late_on_purpose_and_drafts_nothing_is_soon_not_waited_for(name: str) -> None:
    cluster = Cluster(model(), model(), wan=WanProfile(rtt_s=2.0))
    site = cluster.dial_in(model())
    site.mangle = lambda drafts: structs.replace(drafts, held_s=0.0, parent_ids=(), tokens=(), log_probs=())
    cluster.ask(1, PROMPT, max_tokens=TOKENS, policy=chain(name, controller_entropy_threshold_nats=TRUSTING))
    cluster.run(until=1e9)
    assert tuple(cluster.requests[SessionId(1)].tokens) == plain_decode(model(), PROMPT, max_tokens=TOKENS)
    assert cluster.requests[SessionId(1)].token_times[-1] < TOKENS * 0.0234 + 8.0


def test_after_a_worker_that_was_waited_for_in_vain_a_better_one_is_waited_for_again() -> None:
    cluster = Cluster(model(), model(), wan=WanProfile(rtt_s=2.0))
    site = cluster.dial_in(model())
    site.mangle = lambda drafts: structs.replace(drafts, held_s=0.0, parent_ids=(), tokens=(), log_probs=())

    def replace_it() -> None:
        cluster.crash(cluster.site(1))
        cluster.wan.rtt_s = 0.07
        cluster.dial_in(model())

    cluster.at(8.0, replace_it)
    cluster.ask(1, PROMPT, max_tokens=3 * TOKENS, policy=chain("remote"))
    cluster.run(until=1e9)
    assert tuple(cluster.requests[SessionId(1)].tokens) == plain_decode(model(), PROMPT, max_tokens=3 * TOKENS)
    assert sum(done.accepted for done in cluster.rounds[-50:]) > 80
