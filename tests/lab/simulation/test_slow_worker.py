"""An honest worker that computes a long prompt for a minute: it is kept, worth nothing meanwhile, and of use once it has drafted."""

from __future__ import annotations

from typing import NamedTuple

from tests.cluster import Cluster, WanProfile, plain_decode

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.effects import DropWorker, Effect, SendMessage
from wanspec.core.protocol.events import ControllerEvent
from wanspec.core.protocol.messages import CloseSession, OpenSession
from wanspec.core.protocol.workforce import MAX_COMPUTING_S, WORKER_UNANSWERED_S
from wanspec.core.speculation.types import SessionId, WorkerId
from wanspec.engines.scripted import ScriptedBackend
from wanspec.lab.simulation.compute import Device
from wanspec.presets import StepTime

PROMPT = [1 + at % 9 for at in range(6000)]
TOKEN_S = 0.01
"""Of the slow worker: a minute for the prompt."""
STEP_S = 0.2
"""Of the target: a token takes as long, as its own site's draft model is useless."""
TOKENS = 600


def model() -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=32, seed=5, context_length=1 << 15)


class Said(NamedTuple):
    """Something that the controller says to or of a worker."""

    at: float
    kind: str
    worker_id: int | None
    session_id: int = 0


def watched(cluster: Cluster) -> list[Said]:
    """Openings, closings and drops, to be."""
    seen: list[Said] = []
    handle = cluster.controller.handle

    def listening(event: ControllerEvent, *, now: float) -> list[Effect]:
        effects = handle(event, now=now)
        for effect in effects:
            match effect:
                case SendMessage(message=OpenSession(session_id=session_id)):
                    seen.append(Said(now, "open", effect.worker_id, session_id))
                case SendMessage(message=CloseSession(session_id=session_id)):
                    seen.append(Said(now, "close", effect.worker_id, session_id))
                case DropWorker():
                    seen.append(Said(now, f"drop: {effect.cause}, {effect.is_at_fault}", effect.worker_id))
        return effects

    cluster.controller.handle = listening  # type: ignore[method-assign]
    return seen


def useless() -> ScriptedBackend:
    return ScriptedBackend(vocabulary_size=32, seed=5, context_length=1 << 15, disagreement=1.0)


def slow_cluster() -> Cluster:
    cluster = Cluster(model(), useless(), wan=WanProfile(rtt_s=0.05), target_step_s=STEP_S)
    cluster.dial_in(model()).device = Device(StepTime(step_s=0.0075, token_s=TOKEN_S))
    return cluster


def ask(cluster: Cluster) -> None:
    cluster.ask(1, PROMPT, max_tokens=TOKENS, policy=PolicyConfig(width=4, lookup=False))


def proposed(cluster: Cluster) -> float:
    return cluster.controller._workers[WorkerId(1)].proposed.top


def test_a_worker_that_computes_a_prompt_for_a_minute_keeps_its_session_and_is_of_use_afterwards() -> None:
    cluster = slow_cluster()
    seen = watched(cluster)
    useful: list[float] = []
    for when in (30.0, 59.0, 65.0):
        cluster.at(when, lambda: useful.append(proposed(cluster)))
    ask(cluster)
    cluster.run(until=1e3)
    assert cluster.requests[SessionId(1)].tokens == list(plain_decode(model(), PROMPT, max_tokens=TOKENS))
    assert useful[:2] == [0.0, 0.0]
    assert useful[2] > 0.0
    assert [said.kind for said in seen] == ["open", "close"]  # once, and at its end
    assert seen[1].at > 65.0


def test_meanwhile_nobody_waits_for_it() -> None:
    cluster = slow_cluster()
    ask(cluster)
    cluster.run(until=1e3)
    alone = Cluster(model(), useless(), target_step_s=STEP_S)
    ask(alone)
    alone.run(until=1e3)
    minute = sum(at < 55.0 for at in cluster.requests[SessionId(1)].token_times)
    assert minute > 0.98 * sum(at < 55.0 for at in alone.requests[SessionId(1)].token_times)


def test_its_session_goes_to_a_worker_that_is_free_and_new_ones_go_there_too() -> None:
    cluster = slow_cluster()
    seen = watched(cluster)
    cluster.at(3.0, lambda: cluster.dial_in(model()))
    cluster.at(5.0, lambda: cluster.ask(2, [1, 2, 3], max_tokens=200, policy=PolicyConfig(width=4, lookup=False)))
    ask(cluster)
    cluster.run(until=1e3)
    assert [(said.session_id, said.worker_id) for said in seen if said.kind == "open"] == [(1, 1), (2, 2), (1, 2)]
    assert {said.kind for said in seen} == {"open", "close"}
    assert WORKER_UNANSWERED_S <= [said.at for said in seen if said.kind == "open"][2] < WORKER_UNANSWERED_S + 1.0


def test_a_worker_that_only_says_that_it_computes_is_rested_in_the_end() -> None:
    cluster = slow_cluster()
    cluster.site(1).device = Device(StepTime(step_s=1e6))
    seen = watched(cluster)
    cluster.ask(1, PROMPT, max_tokens=1900, policy=PolicyConfig(width=4, lookup=False))
    cluster.run(until=1e3)
    assert [said.kind for said in seen[:2]] == ["open", "close"]
    assert MAX_COMPUTING_S < seen[1].at < MAX_COMPUTING_S + 60.0
