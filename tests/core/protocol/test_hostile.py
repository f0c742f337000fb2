"""What a worker may try on sessions that are not its own, and on the clock."""

from __future__ import annotations

from tests.cluster import Cluster, plain_decode
from tests.core.protocol.events import drafts, received

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.effects import DropWorker
from wanspec.core.protocol.events import DraftsReceived
from wanspec.core.protocol.heartbeat import LOST_RTTS, PING_PERIOD_S, Heartbeat
from wanspec.core.speculation.types import SessionId, WorkerId
from wanspec.engines.scripted import ScriptedBackend

PROMPT, TOKENS = (1, 2, 3), 60
HONEST, LIAR = WorkerId(1), WorkerId(2)


def model() -> ScriptedBackend:
    return ScriptedBackend(seed=5)


def certain(session_id: int, worker_id: int, *, first: int = 1, parent: int = 0) -> DraftsReceived:
    return received(drafts(2, [0], session_id=session_id, first=first, parents=[parent], log_prob=0.0), worker_id=worker_id)


def test_a_worker_cannot_draft_for_a_session_of_anothers_whatever_node_ids_it_names() -> None:
    cluster = Cluster(model(), model())
    cluster.dial_in(model())
    cluster.ask(1, PROMPT, max_tokens=TOKENS, policy=PolicyConfig(name="remote"))
    cluster.dial_in(model())
    answers = []

    def meddle() -> None:
        for first, parent in ((1, 0), (2, 1), (1000, 1), (1001, 1000)):
            answers.append(cluster.controller.handle(certain(1, LIAR, first=first, parent=parent), now=cluster.queue.now))

    for step in range(1, 20):
        cluster.at(step / 10, meddle)
    cluster.run(until=100.0)
    assert answers
    assert not any(answers)
    assert tuple(cluster.requests[SessionId(1)].tokens) == plain_decode(model(), PROMPT, max_tokens=TOKENS)
    assert cluster.joined > 0
    assert {worker for _, worker in cluster.opened} == {HONEST}


def test_a_worker_that_drafts_for_a_session_that_never_was_is_dropped() -> None:
    cluster = Cluster(model(), model())
    cluster.dial_in(model())
    effects = cluster.controller.handle(certain(77, HONEST), now=0.1)
    (dropped,) = [effect for effect in effects if isinstance(effect, DropWorker)]
    assert (dropped.reason, dropped.is_at_fault) == ("it drafts for session 77, which never was", True)


def test_who_answers_pings_as_late_as_it_can_wins_a_few_seconds_and_no_more() -> None:
    heartbeat, now = Heartbeat(now=0.0), 0.0
    for _ in range(100):
        number = heartbeat.ping(now=now)
        now += PING_PERIOD_S
        assert heartbeat.ponged(number, now=now)
    heartbeat.told(now=now)
    assert heartbeat.lost_at is not None
    assert heartbeat.lost_at - now <= LOST_RTTS * PING_PERIOD_S
    for _ in range(100):  # later than the next ping, an answer says nothing of the round trip
        number = heartbeat.ping(now=now)
        heartbeat.ping(now=now + PING_PERIOD_S)
        now += 60.0
        assert heartbeat.ponged(number, now=now)
    heartbeat.told(now=now)
    assert heartbeat.lost_at - now <= LOST_RTTS * PING_PERIOD_S
