"""A controller and its workers: who gets a session, who is pinged, dropped or rested, and what late words are worth."""

from __future__ import annotations

import math

import pytest
from msgspec import structs
from tests.core.protocol.events import arrival, controller, drafts, joined, only, opened, received, verified

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import DraftsMerged, DropWorker, Effect, SendMessage
from wanspec.core.protocol.events import (
    DeadlineReached,
    PassKind,
    PongReceived,
    RequestCancelled,
    VerifyFinished,
    WorkerJoined,
    WorkerLost,
)
from wanspec.core.protocol.heartbeat import LOST_MIN_S, PING_PERIOD_S
from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS, CloseSession, Commit, OpenSession, Ping
from wanspec.core.protocol.placement import Placement
from wanspec.core.protocol.pool import FIRST_REST_S, MAX_HEAD_START_S, REVIEW_S, TRIAL_TOKENS, WorkerRecord
from wanspec.core.protocol.workforce import MAX_FORMER, NEWCOMER_TOKENS, WORKER_UNANSWERED_S
from wanspec.core.speculation.types import SessionId, TargetChoices, WorkerId


def time_passes(machine: Controller, *, until: float, is_answered: bool = True) -> list[Effect]:
    """Let deadlines come, and pings be answered: all that came of it."""
    effects: list[Effect] = []
    while (deadline := machine.next_deadline()) is not None and deadline <= until:
        effects += machine.handle(DeadlineReached(), now=deadline)
        for worker_id, worker in machine._workers.items() if is_answered else ():
            machine.handle(PongReceived(worker_id=worker_id, number=worker.heartbeat._newest_ping), now=deadline)
    return effects


def answers(machine: Controller) -> list[int]:
    """A 7 for every row of the target pass in flight."""
    ((_, rows),) = machine._passes._in_flight[PassKind.VERIFY].rows
    return [7] * len(rows)


def verify_begins(machine: Controller, *, now: float) -> float:
    """Let the time come at which a target pass is in flight."""
    while PassKind.VERIFY not in machine._passes._in_flight:
        deadline = machine.next_deadline()
        assert deadline is not None
        now = max(now, deadline)
        machine.handle(DeadlineReached(), now=now)
    for worker in machine._workers.values():
        worker.heartbeat.heard()
    return now


def rounds_until_rest(machine: Controller, *, now: float) -> tuple[float, list[SendMessage]]:
    """Rounds of session 1, 20 ms each, that its worker has no part in, until it is taken from it: when, and what was said then."""
    for _ in range(1000):
        now = verify_begins(machine, now=now + 0.02)
        session = machine._sessions[SessionId(1)]
        assert session.link is not None
        heard = received(drafts(session.end - 1), worker_id=session.link.worker_id)
        machine.handle(heard, now=now)
        said = [effect for effect in machine.handle(verified(*answers(machine)), now=now) if isinstance(effect, SendMessage)]
        if any(isinstance(effect.message, CloseSession) for effect in said):
            return now, said
    raise AssertionError("the worker is never rested")


def test_a_session_opens_at_the_least_loaded_worker_and_moves_when_that_is_lost() -> None:
    machine = controller(joined(1), joined(2))
    first = only(machine.handle(arrival(1, policy="paper"), now=0.0), SendMessage)
    assert (first.worker_id, type(first.message)) == (1, OpenSession)
    assert only(machine.handle(arrival(2, policy="paper"), now=0.0), SendMessage).worker_id == 2
    machine.handle(VerifyFinished(choices=verified(7).choices, duration_s=0.02), now=0.1)
    moved = only(machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.2), SendMessage)
    assert moved.worker_id == 2
    assert isinstance(moved.message, OpenSession)
    assert moved.message.tokens == (1, 2, 3, 7)


def test_a_request_goes_to_workers_that_it_allows_and_to_no_other_whatever_becomes_of_them() -> None:
    machine = controller(joined(1, labels=("region=us",)), joined(2, labels=("region=eu",)))
    wanted = Placement(labels=("region=eu",))
    assert opened(machine.handle(arrival(1, policy="paper", placement=wanted), now=0.0)) == [2]
    assert opened(machine.handle(arrival(2, policy="paper", placement=Placement(offload=False)), now=0.0)) == []
    assert opened(machine.handle(WorkerLost(worker_id=WorkerId(2)), now=0.1)) == []
    assert opened(machine.handle(joined(3), now=0.2)) == []
    assert opened(machine.handle(joined(4, labels=("region=eu", "site=x")), now=0.3)) == [4]


def test_a_full_worker_gets_no_more() -> None:
    machine = controller(joined(1, max_sessions=1), arrival(1, policy="paper"))
    assert not [e for e in machine.handle(arrival(2, policy="paper"), now=0.0) if isinstance(e, SendMessage)]


def test_a_silent_worker_is_dropped_in_time() -> None:
    machine = controller(joined(1), arrival(1, policy="paper"))
    effects = time_passes(machine, until=WORKER_UNANSWERED_S - 0.1)
    assert not [effect for effect in effects if isinstance(effect, DropWorker)]
    dropped = only(time_passes(machine, until=WORKER_UNANSWERED_S), DropWorker)
    assert ("unanswered for 10 s" in dropped.reason, dropped.is_at_fault) == (True, True)
    assert machine.num_workers == 0


def test_a_worker_that_seems_to_lag_because_we_slept_is_not_blamed() -> None:
    machine = controller(joined(1), arrival(1, policy="paper"))
    dropped = only(machine.handle(DeadlineReached(), now=500.0), DropWorker)
    assert ("unanswered" in dropped.reason, dropped.is_at_fault) == (True, False)


def test_a_worker_that_is_quiet_is_pinged_and_kept_while_it_answers() -> None:
    machine = controller(joined(1))
    pings = [effect for effect in time_passes(machine, until=60.0) if isinstance(effect, SendMessage)]
    assert [type(ping.message) for ping in pings] == [Ping] * 60
    assert machine.num_workers == 1


def test_a_worker_that_gives_no_sign_of_life_is_dropped_within_seconds_and_without_blame() -> None:
    machine = controller(joined(1))
    time_passes(machine, until=10.0)
    effects = time_passes(machine, until=10.0 + PING_PERIOD_S + LOST_MIN_S, is_answered=False)
    dropped = only(effects, DropWorker)
    assert (dropped.reason, dropped.is_at_fault) == ("it gives no sign of life", False)
    assert machine.num_workers == 0


def test_of_a_link_that_dies_in_mid_request_the_session_goes_elsewhere_as_soon() -> None:
    machine = controller(joined(1), arrival(1, policy="remote"))
    machine.handle(received(drafts(2)), now=0.1)
    machine.handle(verified(7), now=0.1)
    machine.handle(joined(2), now=0.1)
    machine.handle(PongReceived(worker_id=WorkerId(2), number=1), now=0.1)
    effects: list[Effect] = []
    while WorkerId(1) in machine._workers:
        now = machine.next_deadline() or 0.0
        effects += machine.handle(DeadlineReached(), now=now)
        machine._workers[WorkerId(2)].heartbeat.heard()
    assert (opened(effects), now) == ([2], 0.1 + LOST_MIN_S)


def test_a_pong_without_its_ping_loses_a_worker_its_place_and_a_late_one_of_a_worker_that_is_gone_is_nothing() -> None:
    machine = controller(joined(1))
    assert machine.handle(PongReceived(worker_id=WorkerId(1), number=1), now=0.1) == []
    dropped = only(machine.handle(PongReceived(worker_id=WorkerId(1), number=2), now=0.2), DropWorker)
    assert "ping 2, which never was" in dropped.reason
    assert machine.handle(PongReceived(worker_id=WorkerId(1), number=1), now=0.3) == []


def test_of_a_worker_or_a_session_that_is_gone_nothing_more_is_heard() -> None:
    machine = controller(joined(1), arrival(1, policy="paper"))
    machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.1)
    assert machine.handle(received(drafts(2, session_id=1)), now=0.2) == []  # it had not heard of the end yet
    machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.3)
    assert machine.handle(received(drafts(2, session_id=1)), now=0.4) == []
    assert machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.5) == []


@pytest.mark.parametrize(("session_id", "base"), [(7, 2), (1, 50)])
def test_a_worker_that_drafts_what_it_cannot_know_is_dropped(session_id: int, base: int) -> None:
    machine = controller(joined(1), arrival(1, policy="paper"))
    effects = machine.handle(received(drafts(base, session_id=session_id)), now=0.1)
    assert only(effects, DropWorker).worker_id == 1
    assert machine.num_workers == 0


def test_a_worker_whose_drafts_are_never_committed_is_rested_and_comes_back_after_its_rest() -> None:
    machine = controller(
        joined(1),
        joined(2, max_sessions=1),
        arrival(1, policy="remote", max_tokens=5000),
        arrival(2, policy="remote"),
        RequestCancelled(session_id=SessionId(2)),
    )
    rested_at, moved = rounds_until_rest(machine, now=0.1)
    told = [(effect.worker_id, type(effect.message)) for effect in moved[:3]]
    assert told == [(1, Commit), (1, CloseSession), (2, OpenSession)]  # what a round says of a worker is seen when the next has begun
    assert rested_at > TRIAL_TOKENS * 0.02
    machine.handle(WorkerLost(worker_id=WorkerId(2)), now=rested_at)
    assert opened(machine.handle(arrival(3, policy="remote"), now=rested_at + FIRST_REST_S - 0.1)) == []
    assert opened(machine.handle(arrival(4, policy="remote"), now=rested_at + FIRST_REST_S)) == [1]
    assert machine.num_workers == 1


def test_a_rest_ends_in_time_though_nobody_asks_or_comes() -> None:
    machine = controller(joined(1), arrival(1, policy="remote", max_tokens=5000))
    rested_at, _ = rounds_until_rest(machine, now=0.1)
    assert opened(time_passes(machine, until=rested_at + FIRST_REST_S - 0.01)) == []
    assert opened(time_passes(machine, until=rested_at + FIRST_REST_S + 0.01)) == [1]


def test_a_request_that_found_no_room_is_drafted_for_when_another_ends() -> None:
    machine = controller(joined(1, max_sessions=1))
    for session_id in (1, 2, 3):
        machine.handle(arrival(session_id, policy="paper"), now=0.0)
    effects = machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.1)
    assert opened(effects) == [1]
    assert machine._sessions[SessionId(2)].link is not None


def test_a_worker_that_is_useless_again_rests_twice_as_long() -> None:
    machine = controller(joined(1), arrival(1, policy="remote", max_tokens=5000))
    rested_at, _ = rounds_until_rest(machine, now=0.1)
    for now, openings in ((rested_at + 0.1, 0), (rested_at + FIRST_REST_S, 1)):  # the session goes on, and asks after every round
        began = verify_begins(machine, now=now)
        assert opened(machine.handle(verified(*answers(machine)), now=began)) == [1] * openings
    second_rest_at, _ = rounds_until_rest(machine, now=rested_at + FIRST_REST_S)
    for rest_s, expected in ((2 * FIRST_REST_S - 0.1, []), (2 * FIRST_REST_S, [1])):
        session_id = 2 + len(expected)
        effects = machine.handle(arrival(session_id, policy="remote"), now=second_rest_at + rest_s)
        assert [effect.worker_id for effect in effects if isinstance(effect, SendMessage)] == expected


def test_a_worker_that_hangs_up_and_dials_again_rests_on() -> None:
    machine = controller(joined(1, identity="CN=a"), arrival(1, policy="remote", max_tokens=5000))
    rested_at, _ = rounds_until_rest(machine, now=0.1)
    machine.handle(WorkerLost(worker_id=WorkerId(1)), now=rested_at)
    assert opened(machine.handle(joined(2, identity="CN=a"), now=rested_at + 1.0)) == []
    assert opened(machine.handle(joined(3, identity="CN=b"), now=rested_at + 1.0)) == [3]
    machine.handle(WorkerLost(worker_id=WorkerId(3)), now=rested_at + 2.0)
    assert opened(time_passes(machine, until=rested_at + FIRST_REST_S - 0.01)) == []
    assert opened(time_passes(machine, until=rested_at + FIRST_REST_S + 0.01)) == [2]


def test_a_rest_is_twice_as_long_though_the_worker_has_dialled_again_since() -> None:
    machine = controller(joined(1, identity="CN=a"), arrival(1, policy="remote", max_tokens=5000))
    rested_at, _ = rounds_until_rest(machine, now=0.1)
    machine.handle(WorkerLost(worker_id=WorkerId(1)), now=rested_at)
    assert opened(machine.handle(joined(2, identity="CN=a"), now=rested_at + FIRST_REST_S)) == [2]
    again_at, _ = rounds_until_rest(machine, now=rested_at + FIRST_REST_S)
    assert machine._workers[WorkerId(2)].rests_until == again_at + 2 * FIRST_REST_S


def test_what_a_worker_was_worth_is_forgotten_when_it_stays_away_or_many_others_have_left_since() -> None:
    machine = controller(joined(1, identity="CN=a"), arrival(1, policy="remote", max_tokens=5000))
    rested_at, _ = rounds_until_rest(machine, now=0.1)
    machine.handle(WorkerLost(worker_id=WorkerId(1)), now=rested_at)
    assert opened(machine.handle(joined(2, identity="CN=a"), now=rested_at + REVIEW_S)) == [2]
    _, _ = rounds_until_rest(machine, now=rested_at + REVIEW_S)
    machine.handle(WorkerLost(worker_id=WorkerId(2)), now=rested_at + REVIEW_S + 10.0)
    former = machine._workforce._former
    assert list(former) == ["CN=a"]
    for number in range(MAX_FORMER - 1):
        former[f"CN={number}"] = WorkerRecord()
    machine.handle(joined(3, identity="CN=b"), now=400.0)
    machine._workers[WorkerId(3)].judged_at = 400.0
    machine.handle(WorkerLost(worker_id=WorkerId(3)), now=400.0)
    assert len(former) == MAX_FORMER
    assert ("CN=a" in former, "CN=b" in former) == (False, True)


def test_a_worker_that_now_and_then_proposes_what_is_committed_is_not_rested() -> None:
    machine = controller(joined(1), arrival(1, policy="remote", max_tokens=5000))
    now = 0.0
    for step in range(600):
        now = verify_begins(machine, now=now + 0.02)
        base = machine._sessions[SessionId(1)].end - 1
        says = drafts(base, [7], first=step) if step % 20 == 19 else drafts(base)
        machine.handle(received(says), now=now)
        machine.handle(verified(*answers(machine)), now=now)
    assert machine._workers[WorkerId(1)].sessions == {1}


def test_what_one_worker_proposed_is_not_put_down_to_the_next() -> None:
    machine = controller(joined(1), arrival(1, policy="remote"))
    machine.handle(verified(7), now=0.1)
    machine.handle(received(drafts(3, [8, 9])), now=0.2)
    machine.handle(joined(2), now=0.2)
    machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.2)
    machine.handle(verified(8, 9, 5), now=0.2 + MAX_HEAD_START_S)
    record = machine._workers[WorkerId(2)]
    assert (record.proposed.top, record.proposed.bottom, record.reliability.log_prob(-0.1)) == (0.0, 3.0, -0.1)


def test_a_worker_is_not_judged_by_what_many_users_commit_before_its_first_drafts_can_be_there() -> None:
    machine = controller(joined(1, max_sessions=64))
    for session_id in range(1, 65):
        machine.handle(arrival(session_id, policy="remote", max_tokens=5000), now=0.0)
    worker, now = machine._workers[WorkerId(1)], 0.0
    while worker.sessions and now < 1.0:
        now = verify_begins(machine, now=now + 0.02)
        passes = machine._passes._in_flight[PassKind.VERIFY].rows
        choices = (TargetChoices(tokens=(7,)),) * len(passes)
        machine.handle(VerifyFinished(choices=choices, duration_s=0.02), now=now)
    assert worker.head_start_s < now < worker.head_start_s + 0.2


def test_of_two_openings_at_one_worker_the_later_counts() -> None:
    machine = controller(joined(1), arrival(1, policy="remote", max_tokens=5000))
    rested_at, _ = rounds_until_rest(machine, now=0.1)
    assert opened(time_passes(machine, until=rested_at + FIRST_REST_S + 0.01)) == [1]
    machine.handle(received(drafts(3, [8], first=900)), now=rested_at + FIRST_REST_S)  # late
    link = machine._sessions[SessionId(1)].link
    assert link is not None
    assert link.newest_node_id == 0


def test_of_workers_that_are_dropped_together_none_gets_the_others_sessions() -> None:
    machine = controller(joined(1), arrival(1, policy="remote"), joined(2), arrival(2, policy="remote"))
    for worker in machine._workers.values():
        assert worker.sessions
        worker.heartbeat.heard()
    effects = machine.handle(DeadlineReached(), now=WORKER_UNANSWERED_S)
    assert sum(isinstance(effect, DropWorker) for effect in effects) == 2
    assert opened(effects) == []


def test_a_prompt_goes_to_no_worker_whose_draft_model_cannot_hold_it() -> None:
    short = WorkerJoined(worker_id=WorkerId(1), name="short", max_sessions=4, context_length=100)
    machine = controller(short, arrival(1, policy="remote", prompt=(1,) * 69))
    assert opened(machine.handle(arrival(2, policy="remote", prompt=(1,) * 68), now=0.0)) == [1]
    assert machine._sessions[SessionId(1)].link is None
    assert opened(machine.handle(joined(2), now=0.1)) == [2]


def test_a_text_that_outgrows_its_workers_context_goes_to_one_that_can_hold_it() -> None:
    short = WorkerJoined(worker_id=WorkerId(1), name="short", max_sessions=4, context_length=40)
    machine = controller(short, arrival(1, policy="remote", prompt=(1,) * 8, max_tokens=100), joined(2, max_sessions=1))
    now, said = 0.0, []
    while machine._sessions[SessionId(1)].end < 40:
        now = verify_begins(machine, now=now + 0.02)
        said = [e for e in machine.handle(verified(*answers(machine)), now=now) if isinstance(e, SendMessage)]
    told = [(effect.worker_id, type(effect.message)) for effect in said if not isinstance(effect.message, Ping)]
    assert told == [(1, CloseSession), (2, OpenSession)]


def test_a_text_longer_than_the_protocol_can_say_is_told_to_nobody() -> None:
    machine = controller(joined(1), arrival(1, policy="remote", prompt=(1,) * MAX_SEQUENCE_TOKENS))
    assert machine._sessions[SessionId(1)].link is None


def test_a_worker_that_holds_too_many_nodes_over_all_sessions_gets_no_more_and_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.workforce.MAX_DRAFT_NODES", 100)
    machine = controller(joined(1), joined(2), *[arrival(number, policy="remote") for number in (1, 2, 3)])
    machine.handle(WorkerLost(worker_id=WorkerId(9)), now=0.0)
    places = {number: machine._sessions[SessionId(number)].link.worker_id for number in (1, 2, 3)}  # type: ignore[union-attr]
    greedy = places[1]
    honest = next(number for number, worker_id in places.items() if worker_id != greedy)

    def said(session_id: int, count: int, *, first: int, now: float) -> tuple[int, int]:
        message = drafts(2, [7] * count, session_id=session_id, first=first, parents=[0] * count)
        message = structs.replace(message, tokens=tuple(range(count)))
        merged = only(machine.handle(received(message, worker_id=places[session_id]), now=now), DraftsMerged)
        return merged.joined, merged.refused

    assert said(1, 90, first=1, now=0.0) == (90, 0)
    assert said(honest, 20, first=1, now=0.0) == (20, 0)
    assert said(1, 90, first=91, now=0.1) == (0, 90)
    assert said(honest, 30, first=21, now=0.1) == (30, 0)
    assert said(1, 90, first=181, now=0.101) == (0, 90)  # counted no more often than need be
    machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.2)
    assert said(honest, 40, first=51, now=0.3) == (40, 0)


def test_a_worker_that_comes_again_is_not_in_doubt_again() -> None:
    policy = PolicyConfig(name="adaptive", lookup=False, redundancy_price_s=math.inf)
    machine = controller(joined(1), arrival(1, policy=policy, max_tokens=5000))
    for number in range(1, 201):
        base = machine._sessions[SessionId(1)].end - 1
        machine.handle(received(drafts(base, [7], first=number)), now=0.02 * number)
        machine.handle(verified(7), now=0.02 * number)
    (first,) = machine._workforce.workers.values()
    assert first.pace.bottom > NEWCOMER_TOKENS
    machine.handle(WorkerLost(worker_id=WorkerId(1)), now=5.0)
    machine.handle(joined(2), now=5.1)
    (second,) = machine._workforce.workers.values()
    for fresh, known in ((second.pace, first.pace), (second.pace_alone, first.pace_alone)):
        assert fresh.top / fresh.bottom == pytest.approx(known.top / known.bottom)
        assert fresh.bottom == pytest.approx(NEWCOMER_TOKENS)


def test_a_session_stays_at_a_worker_that_computes_for_long_where_no_other_is_free() -> None:
    machine = controller(joined(1), arrival(1, policy="remote", max_tokens=5000))
    (session,) = machine._sessions.values()
    assert session.link is not None
    machine.handle(received(drafts(2)), now=0.0)
    session.link.computes_since = 0.0
    for now in (WORKER_UNANSWERED_S - 0.1, WORKER_UNANSWERED_S + 0.1):
        machine._workers[WorkerId(1)].heartbeat.heard()
        effects = machine.handle(verified(7), now=now)
        assert not [effect for effect in effects if isinstance(effect, SendMessage) and isinstance(effect.message, CloseSession)]
        assert session.link is not None
