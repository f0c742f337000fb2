"""A controller without a draft model, and one whose workers draft with another model than it does itself."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from tests.cluster import TARGET_STEP_S, Cluster, WanProfile, plain_decode
from tests.core.protocol.events import PromptController, arrival, drafts, joined, only, received, verified

from wanspec.core.policy.coverage import INITIAL_SHARES
from wanspec.core.policy.parameters import POLICY_NAMES
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.effects import StartDraft, StartVerify
from wanspec.core.protocol.events import DeadlineReached
from wanspec.core.protocol.messages import MAX_STEP_S
from wanspec.core.protocol.pool import PooledWorker
from wanspec.core.protocol.site import MAX_VAIN_WAIT_S
from wanspec.core.speculation.types import SessionId, WorkerId
from wanspec.engines.scripted import ScriptedBackend

PROMPT = [1, 2, 3]
TOKENS = 200
NEVER_HERE = PolicyConfig(redundancy_price_s=float("inf"), lookup=False)
"""adaptive, but local drafts are too dear wherever a worker drafts."""


def model(disagreement: float = 0.0, *, vocabulary_size: int = 64) -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=vocabulary_size, seed=5, disagreement=disagreement)


def run(
    policy: PolicyConfig,
    *,
    local: ScriptedBackend | None = None,
    worker: ScriptedBackend | None = None,
    rtt_s: float = 0.03,
    target: ScriptedBackend | None = None,
) -> Cluster:
    """One text, which is checked."""
    target = target or model()
    cluster = Cluster(target, local, wan=WanProfile(rtt_s=rtt_s))
    if worker is not None:
        cluster.dial_in(worker)
    cluster.ask(1, PROMPT, max_tokens=TOKENS, policy=policy)
    cluster.run(until=1e9)
    assert tuple(cluster.requests[SessionId(1)].tokens) == plain_decode(target, PROMPT, max_tokens=TOKENS)
    return cluster


def worker_of(cluster: Cluster) -> PooledWorker:
    return cluster.controller._workers[WorkerId(1)]


def pace_s(cluster: Cluster) -> float:
    """Seconds per token."""
    times = cluster.requests[SessionId(1)].token_times
    return (times[-1] - times[0]) / (len(times) - 1)


def alone_s(cluster: Cluster) -> float:
    """What a token would have cost without the worker, as the controller sees it."""
    return worker_of(cluster).pace_alone.mean(0.0, 0.0)


# Without a draft model here.


@pytest.mark.parametrize("name", POLICY_NAMES)
@pytest.mark.parametrize("has_worker", [True, False])
def test_nothing_is_drafted_where_there_is_no_draft_model(name: str, *, has_worker: bool) -> None:
    cluster = run(PolicyConfig(name=name), worker=model(0.1) if has_worker else None)
    assert cluster.controller_draft_passes == 0


def test_a_workers_drafts_are_verified_as_ever() -> None:
    for name in ("adaptive", "remote"):
        cluster = run(PolicyConfig(name=name), worker=model(0.1))
        assert len(cluster.rounds) < 0.6 * TOKENS
        assert pace_s(cluster) < 0.9 * TARGET_STEP_S


def test_what_the_text_itself_proposes_is_verified_too() -> None:
    target = model(vocabulary_size=4)  # it repeats itself
    with_lookup, plain = (run(PolicyConfig(lookup=lookup), target=target) for lookup in (None, False))
    assert len(plain.rounds) == TOKENS
    assert len(with_lookup.rounds) < TOKENS / 2


def test_a_worker_is_held_against_plain_decoding() -> None:
    for disagreement in (0.0, 0.3):
        cluster = run(PolicyConfig(lookup=False), worker=model(disagreement))
        assert alone_s(cluster) == pytest.approx(TARGET_STEP_S, rel=0.01)
        assert worker_of(cluster).standing == "good"


def test_a_worker_is_held_against_lookup_where_that_is_on() -> None:
    target = model(vocabulary_size=4)
    without = run(PolicyConfig(), target=target)
    cluster = run(PolicyConfig(), target=target, worker=model(0.5, vocabulary_size=4))
    assert alone_s(cluster) == pytest.approx(pace_s(without), rel=0.25)


def test_a_worker_is_waited_for_as_long_as_its_own_steps_take() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(), draft_context_length=0)
    for event in (joined(1), arrival(policy="remote")):
        machine.handle(event, now=0.0)
    machine.handle(received(drafts(2)), now=0.01)
    machine.handle(verified(7), now=0.02)
    session = machine._sessions[SessionId(1)]
    rtt_s = machine._workers[WorkerId(1)].rtt.smoothed_s
    assert session.wait_until == pytest.approx(0.02 + 2 * (rtt_s + 3 * 0.007))


def test_a_worker_that_says_that_it_is_slow_is_not_waited_for_for_long() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(), draft_context_length=0)
    for event in (joined(1), arrival(policy="remote")):
        machine.handle(event, now=0.0)
    machine.handle(verified(7), now=0.02)
    machine.handle(received(replace(drafts(3), step_s=MAX_STEP_S)), now=0.03)
    assert machine._sessions[SessionId(1)].wait_until == 0.03 + MAX_VAIN_WAIT_S
    only(machine.handle(DeadlineReached(), now=0.03 + MAX_VAIN_WAIT_S), StartVerify)


# A worker with another model.


def test_a_worker_of_another_model_is_held_against_what_the_model_here_can_do() -> None:
    without = run(PolicyConfig(lookup=False), local=model(0.6))
    cluster = run(PolicyConfig(lookup=False), local=model(0.6), worker=model(0.1), rtt_s=0.06)
    assert alone_s(cluster) > pace_s(cluster)  # it is of use, and the controller knows it
    assert pace_s(cluster) < 0.75 * pace_s(without)
    assert worker_of(cluster).standing == "good"
    assert cluster.controller_draft_passes < 0.25 * without.controller_draft_passes


def test_a_worker_of_a_worse_model_harms_nobody() -> None:
    without = run(PolicyConfig(), local=model(0.1))
    assert pace_s(run(PolicyConfig(), local=model(0.1), worker=model(0.9))) < 1.05 * pace_s(without)


def test_what_a_worker_drafts_teaches_nothing_of_another_model_that_is_here() -> None:
    cluster = run(NEVER_HERE, local=model(0.6), worker=model(0.0))
    own = run(NEVER_HERE, local=model(0.6), worker=model(0.6))
    assert cluster.controller_draft_passes == own.controller_draft_passes == 0
    for each in (cluster, own):
        (calibration,) = each.controller._calibrations.states.values()
        assert sum(calibration.tokens) == 0.0
    (coverage,) = cluster.controller._coverages.values()
    assert coverage._shares == INITIAL_SHARES
    (coverage,) = own.controller._coverages.values()
    assert coverage._shares != INITIAL_SHARES  # of the same model it says something


def test_the_model_here_is_known_by_its_own_passes_where_the_workers_is_another() -> None:
    always_here = PolicyConfig(redundancy_price_s=0.0, lookup=False)
    cluster, without = (run(always_here, local=model(0.5), worker=worker, rtt_s=0.3) for worker in (model(0.9), None))
    (mixed,), (own,) = cluster.controller._coverages.values(), without.controller._coverages.values()
    assert mixed.is_known
    assert mixed.total == pytest.approx(own.total, abs=0.15)


def test_estimates_that_nobody_has_calibrated_are_not_learned_from() -> None:
    cluster = run(PolicyConfig(name="paper"), local=model(0.5), worker=model(0.1))
    assert cluster.controller_draft_passes > 0
    assert all(coverage._shares == INITIAL_SHARES for coverage in cluster.controller._coverages.values())


def test_a_worker_whose_models_name_is_not_known_is_taken_to_have_the_same() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(), draft_name="here")
    for number, name in enumerate(("", "here", "there"), start=1):
        machine.handle(replace(joined(number, max_sessions=1), model_name=name), now=0.0)
        machine.handle(arrival(number, policy="remote"), now=0.0)
    sessions = [machine._sessions[SessionId(number)] for number in (1, 2, 3)]
    assert [machine._worker_is_alike(session) for session in sessions] == [True, True, False]
    assert not any(isinstance(effect, StartDraft) for effect in machine.handle(DeadlineReached(), now=0.1))
