"""Controller and worker alone: what each does with one event at a time, and what it refuses."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeVar

import pytest
from msgspec import structs

from wanspec.errors import LocalProtocolError, RemoteProtocolError
from wanspec.policy.registry import PolicyConfig
from wanspec.protocol.controller import MAX_PATIENT_RTT_S, Controller
from wanspec.protocol.effects import (
    DropWorker,
    Effect,
    EmitTokens,
    FinishReason,
    FinishRequest,
    LeaveController,
    ReleaseSession,
    SendMessage,
    StartDraft,
    StartVerify,
)
from wanspec.protocol.events import (
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    MessageReceived,
    PassFailed,
    PassKind,
    PongReceived,
    RequestArrived,
    RequestCancelled,
    VerifyFinished,
    WorkerJoined,
    WorkerLost,
)
from wanspec.protocol.heartbeat import CONTROLLER_LOST_S, LOST_MIN_S, PING_PERIOD_S
from wanspec.protocol.messages import (
    MAX_HELD_S,
    MAX_NODES_PER_FRAME,
    MAX_SEQUENCE_TOKENS,
    MAX_STEP_S,
    CloseSession,
    Commit,
    ControllerMessage,
    Drafts,
    Drain,
    OpenSession,
    Ping,
    Pong,
    Welcome,
)
from wanspec.protocol.placement import ANYWHERE, Placement
from wanspec.protocol.pool import FIRST_REST_S, JUDGED_TOKENS, MAX_HEAD_START_S
from wanspec.protocol.worker import Worker
from wanspec.protocol.workforce import WORKER_SILENCE_S
from wanspec.speculation.types import (
    DraftChoices,
    DraftingConfig,
    NodeId,
    Position,
    SamplingParams,
    SessionId,
    TargetChoice,
    WorkerId,
)

T = TypeVar("T")


def arrival(session_id: int, *, policy: str = "colocated", max_tokens: int = 10, placement: Placement = ANYWHERE) -> RequestArrived:
    return RequestArrived(
        session_id=SessionId(session_id),
        prompt_tokens=(1, 2, 3),
        sampling=SamplingParams(),
        max_tokens=max_tokens,
        policy=PolicyConfig(name=policy),
        placement=placement,
    )


def joined(worker_id: int, *, max_sessions: int = 4, labels: tuple[str, ...] = ()) -> WorkerJoined:
    return WorkerJoined(worker_id=WorkerId(worker_id), name=f"worker-{worker_id}", max_sessions=max_sessions, labels=labels)


def verified(*tokens: int) -> VerifyFinished:
    return VerifyFinished(choices=(tuple(TargetChoice(token=token, entropy_nats=0.1) for token in tokens),), duration_s=0.02)


def drafted(*tokens: int, entropy_nats: float = 0.0) -> DraftFinished:
    rows = tuple(DraftChoices(tokens=(token, 90), log_probs=(-0.1, -3.0), entropy_nats=entropy_nats) for token in tokens)
    return DraftFinished(choices=(rows,), duration_s=0.007)


def ranked(tokens: tuple[int, ...], log_probs: tuple[float, ...], *, rows: int = 1) -> DraftFinished:
    row = DraftChoices(tokens=tokens, log_probs=log_probs, entropy_nats=2.0)
    return DraftFinished(choices=((row,) * rows,), duration_s=0.007)


def acknowledgement(position: int) -> Drafts:
    return Drafts(
        session_id=SessionId(1),
        base_position=Position(position),
        held_s=0.0,
        step_s=0.007,
        first_node_id=NodeId(1),
        parent_ids=(),
        tokens=(),
        log_probs=(),
    )


def only(effects: list[Effect], kind: type[T]) -> T:
    (effect,) = [effect for effect in effects if isinstance(effect, kind)]
    return effect


def opened(effects: list[Effect]) -> list[int]:
    """The workers at which sessions are opened."""
    sent = [effect for effect in effects if isinstance(effect, SendMessage) and isinstance(effect.message, OpenSession)]
    return [effect.worker_id or 0 for effect in sent]


def controller() -> Controller:
    return Controller(vocabulary_size=100, end_tokens=(0,))


class TestController:
    def test_the_first_pass_is_the_prefill_and_carries_no_drafts(self) -> None:
        (item,) = only(controller().handle(arrival(1), now=0.0), StartVerify).items
        assert (item.append, item.nodes, item.next_positions) == ((1, 2, 3), (), (3,))

    def test_a_round_goes_draft_draft_verify_and_commits_what_was_accepted(self) -> None:
        machine = controller()
        machine.handle(arrival(1), now=0.0)
        (item,) = only(machine.handle(verified(7), now=0.1), StartDraft).items
        assert item.append == (1, 2, 3, 7)  # one batched catch-up
        (item,) = only(machine.handle(drafted(8), now=0.2), StartDraft).items
        assert [node.token for node in item.nodes] == [8]
        (item,) = only(machine.handle(drafted(9), now=0.3), StartVerify).items
        assert (item.append, [node.token for node in item.nodes]) == ((7,), [8, 9])
        emitted = only(machine.handle(verified(8, 5, 6), now=0.4), EmitTokens)
        assert (emitted.position, emitted.tokens) == (4, (8, 5))

    def test_the_text_ends_at_the_end_token_even_in_the_middle_of_a_round(self) -> None:
        machine = controller()
        for event in (arrival(1), verified(7), drafted(0), drafted(9)):
            machine.handle(event, now=0.0)
        effects = machine.handle(verified(0, 9, 6), now=0.0)
        assert only(effects, EmitTokens).tokens == (0,)
        assert only(effects, FinishRequest).reason is FinishReason.END
        assert only(effects, ReleaseSession).session_id == 1

    def test_of_several_end_tokens_the_first_to_come_ends_the_text(self) -> None:
        machine = Controller(vocabulary_size=100, end_tokens=(0, 50))
        for event in (arrival(1), verified(7), drafted(50), drafted(0)):
            machine.handle(event, now=0.0)
        effects = machine.handle(verified(50, 0, 6), now=0.0)
        assert only(effects, EmitTokens).tokens == (50,)
        assert only(effects, FinishRequest).reason is FinishReason.END

    def test_sessions_that_want_the_same_share_a_pass(self) -> None:
        machine = controller()
        machine.handle(arrival(1, policy="autoregressive"), now=0.0)
        machine.handle(arrival(2, policy="autoregressive"), now=0.0)
        items = only(machine.handle(verified(7), now=0.1), StartVerify).items
        assert [item.session_id for item in items] == [1, 2]

    def test_verify_and_draft_take_turns(self) -> None:
        machine = controller()
        machine.handle(arrival(1, policy="autoregressive"), now=0.0)
        machine.handle(arrival(2), now=0.0)
        effects = machine.handle(verified(7), now=0.1)  # 1 wants its next token, 2 its prefill
        assert len(only(effects, StartVerify).items) == 2
        both = VerifyFinished(choices=((TargetChoice(token=4, entropy_nats=0.0),),) * 2, duration_s=0.02)
        assert [item.session_id for item in only(machine.handle(both, now=0.2), StartDraft).items] == [2]
        assert [item.session_id for item in only(machine.handle(drafted(8), now=0.3), StartVerify).items] == [1]

    def test_a_session_opens_at_the_least_loaded_worker_and_moves_when_that_is_lost(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(joined(2), now=0.0)
        first = only(machine.handle(arrival(1, policy="paper"), now=0.0), SendMessage)
        assert (first.worker_id, type(first.message)) == (1, OpenSession)
        assert only(machine.handle(arrival(2, policy="paper"), now=0.0), SendMessage).worker_id == 2
        machine.handle(VerifyFinished(choices=verified(7).choices, duration_s=0.02), now=0.1)
        moved = only(machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.2), SendMessage)
        assert moved.worker_id == 2
        assert isinstance(moved.message, OpenSession)
        assert moved.message.tokens == (1, 2, 3, 7)

    def test_a_request_goes_to_workers_that_it_allows_and_to_no_other_whatever_becomes_of_them(self) -> None:
        machine = controller()
        machine.handle(joined(1, labels=("region=us",)), now=0.0)
        machine.handle(joined(2, labels=("region=eu",)), now=0.0)
        wanted = Placement(labels=("region=eu",))
        assert opened(machine.handle(arrival(1, policy="paper", placement=wanted), now=0.0)) == [2]
        assert opened(machine.handle(arrival(2, policy="paper", placement=Placement(offload=False)), now=0.0)) == []
        assert opened(machine.handle(WorkerLost(worker_id=WorkerId(2)), now=0.1)) == []
        assert opened(machine.handle(joined(3), now=0.2)) == []
        assert opened(machine.handle(joined(4, labels=("region=eu", "site=x")), now=0.3)) == [4]

    def test_a_full_worker_gets_no_more(self) -> None:
        machine = controller()
        machine.handle(joined(1, max_sessions=1), now=0.0)
        machine.handle(arrival(1, policy="paper"), now=0.0)
        assert not [e for e in machine.handle(arrival(2, policy="paper"), now=0.0) if isinstance(e, SendMessage)]

    def test_a_silent_worker_is_dropped_in_time(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="paper"), now=0.0)
        effects = time_passes(machine, until=WORKER_SILENCE_S - 0.1)
        assert not [effect for effect in effects if isinstance(effect, DropWorker)]
        dropped = only(time_passes(machine, until=WORKER_SILENCE_S), DropWorker)
        assert ("unanswered for 10 s" in dropped.reason, dropped.is_at_fault) == (True, True)
        assert machine.num_workers == 0

    def test_a_worker_that_seems_to_lag_because_we_slept_is_not_blamed(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="paper"), now=0.0)
        dropped = only(machine.handle(DeadlineReached(), now=500.0), DropWorker)
        assert ("unanswered" in dropped.reason, dropped.is_at_fault) == (True, False)

    def test_a_worker_that_is_quiet_is_pinged_and_kept_while_it_answers(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        pings = [effect for effect in time_passes(machine, until=60.0) if isinstance(effect, SendMessage)]
        assert [type(ping.message) for ping in pings] == [Ping] * 60
        assert machine.num_workers == 1

    def test_a_worker_that_gives_no_sign_of_life_is_dropped_within_seconds_and_without_blame(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        time_passes(machine, until=10.0)
        effects = time_passes(machine, until=10.0 + PING_PERIOD_S + LOST_MIN_S, is_answered=False)
        dropped = only(effects, DropWorker)
        assert (dropped.reason, dropped.is_at_fault) == ("it gives no sign of life", False)
        assert machine.num_workers == 0

    def test_of_a_link_that_dies_in_mid_request_the_session_goes_elsewhere_as_soon(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="remote"), now=0.0)
        machine.handle(DraftsReceived(worker_id=WorkerId(1), drafts=acknowledgement(2)), now=0.1)
        machine.handle(verified(7), now=0.1)
        machine.handle(joined(2), now=0.1)
        machine.handle(PongReceived(worker_id=WorkerId(2), number=1), now=0.1)
        effects: list[Effect] = []
        while WorkerId(1) in machine._workers:
            now = machine.next_deadline() or 0.0
            effects += machine.handle(DeadlineReached(), now=now)
            machine._workers[WorkerId(2)].heartbeat.heard()
        assert (opened(effects), now) == ([2], 0.1 + LOST_MIN_S)

    def test_a_pong_without_its_ping_loses_a_worker_its_place_and_a_late_one_of_a_worker_that_is_gone_is_nothing(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        assert machine.handle(PongReceived(worker_id=WorkerId(1), number=1), now=0.1) == []
        dropped = only(machine.handle(PongReceived(worker_id=WorkerId(1), number=2), now=0.2), DropWorker)
        assert "ping 2, which never was" in dropped.reason
        assert machine.handle(PongReceived(worker_id=WorkerId(1), number=1), now=0.3) == []

    def test_the_patience_does_not_grow_with_whatever_round_trip_a_worker_shows(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="remote"), now=0.0)
        machine.handle(DraftsReceived(worker_id=WorkerId(1), drafts=acknowledgement(2)), now=9.0)
        machine.handle(verified(7), now=9.0)
        machine.handle(DraftsReceived(worker_id=WorkerId(1), drafts=acknowledgement(3)), now=9.1)
        deadline = machine._sessions[SessionId(1)].wait_until
        assert deadline is not None
        assert 9.0 + 2 * MAX_PATIENT_RTT_S < deadline < 9.1 + 2 * MAX_PATIENT_RTT_S

    def test_a_cancelled_session_ends_at_once_and_its_pass_is_forgotten(self) -> None:
        machine = controller()
        machine.handle(arrival(1), now=0.0)
        assert only(machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.1), FinishRequest).reason is FinishReason.CANCELLED
        assert machine.handle(verified(7), now=0.2) == []
        assert machine.num_sessions == 0
        assert machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.3) == []

    def test_a_failed_pass_ends_its_sessions_with_the_reason(self) -> None:
        machine = controller()
        machine.handle(arrival(1), now=0.0)
        finished = only(machine.handle(PassFailed(kind=PassKind.VERIFY, reason="out of memory"), now=0.1), FinishRequest)
        assert (finished.reason, finished.message) == (FinishReason.ERROR, "out of memory")

    @pytest.mark.parametrize(
        "event", [arrival(0), arrival(5, max_tokens=0), verified(7), drafted(7), PassFailed(kind=PassKind.DRAFT, reason="")]
    )
    def test_a_driver_that_uses_it_wrongly_is_told(self, event: RequestArrived) -> None:
        with pytest.raises(LocalProtocolError):
            controller().handle(event, now=0.0)

    def test_of_a_worker_or_a_session_that_is_gone_nothing_more_is_heard(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="paper"), now=0.0)
        machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.1)
        assert machine.handle(drafts_received(1, session_id=1), now=0.2) == []  # it had not heard of the end yet
        machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.3)
        assert machine.handle(drafts_received(1, session_id=1), now=0.4) == []
        assert machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.5) == []

    @pytest.mark.parametrize(("session_id", "base"), [(7, 2), (1, 50)])
    def test_a_worker_that_drafts_what_it_cannot_know_is_dropped(self, session_id: int, base: int) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="paper"), now=0.0)
        effects = machine.handle(drafts_received(1, session_id=session_id, base=base), now=0.1)
        assert only(effects, DropWorker).worker_id == 1
        assert machine.num_workers == 0

    def test_the_drafts_of_a_request_that_has_ended_are_forgotten(self) -> None:
        machine = controller()
        machine.handle(arrival(1), now=0.0)
        only(machine.handle(verified(7), now=0.1), StartDraft)
        machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.2)
        assert machine.handle(drafted(8), now=0.3) == []

    def test_a_policy_that_wants_more_than_the_tree_can_hold_gets_its_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wanspec.speculation.tree.MAX_TREE_NODES", 1)
        machine = controller()
        machine.handle(arrival(1), now=0.0)
        machine.handle(verified(7), now=0.1)
        (item,) = only(machine.handle(drafted(8), now=0.2), StartVerify).items
        assert (item.append, item.nodes) == ((7,), ())

    def test_a_worker_whose_drafts_are_never_committed_is_rested_and_comes_back_after_its_rest(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(joined(2, max_sessions=1), now=0.0)
        machine.handle(arrival(1, policy="remote", max_tokens=5000), now=0.0)
        machine.handle(arrival(2, policy="remote"), now=0.0)
        machine.handle(RequestCancelled(session_id=SessionId(2)), now=0.0)
        rested_at, moved = rounds_until_rest(machine, now=0.1)
        assert [(effect.worker_id, type(effect.message)) for effect in moved[:2]] == [(1, CloseSession), (2, OpenSession)]
        assert rested_at > JUDGED_TOKENS * 0.02
        machine.handle(WorkerLost(worker_id=WorkerId(2)), now=rested_at)
        assert opened(machine.handle(arrival(3, policy="remote"), now=rested_at + FIRST_REST_S - 0.1)) == []
        assert opened(machine.handle(arrival(4, policy="remote"), now=rested_at + FIRST_REST_S)) == [1]
        assert machine.num_workers == 1

    def test_a_rest_ends_in_time_though_nobody_asks_or_comes(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="remote", max_tokens=5000), now=0.0)
        rested_at, _ = rounds_until_rest(machine, now=0.1)
        assert opened(time_passes(machine, until=rested_at + FIRST_REST_S - 0.01)) == []
        assert opened(time_passes(machine, until=rested_at + FIRST_REST_S + 0.01)) == [1]

    def test_a_request_that_found_no_room_is_drafted_for_when_another_ends(self) -> None:
        machine = controller()
        machine.handle(joined(1, max_sessions=1), now=0.0)
        for session_id in (1, 2, 3):
            machine.handle(arrival(session_id, policy="paper"), now=0.0)
        effects = machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.1)
        assert opened(effects) == [1]
        assert machine._sessions[SessionId(2)].link is not None

    def test_a_worker_that_is_useless_again_rests_twice_as_long(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="remote", max_tokens=5000), now=0.0)
        rested_at, _ = rounds_until_rest(machine, now=0.1)
        for now, opened in ((rested_at + 0.1, 0), (rested_at + FIRST_REST_S, 1)):  # the session goes on, and asks after every round
            began = verify_begins(machine, now=now)
            said = [e for e in machine.handle(verified(*answers(machine)), now=began) if isinstance(e, SendMessage)]
            assert [type(effect.message) for effect in said] == [OpenSession] * opened
        second_rest_at, _ = rounds_until_rest(machine, now=rested_at + FIRST_REST_S)
        for rest_s, expected in ((2 * FIRST_REST_S - 0.1, []), (2 * FIRST_REST_S, [1])):
            session_id = 2 + len(expected)
            effects = machine.handle(arrival(session_id, policy="remote"), now=second_rest_at + rest_s)
            assert [effect.worker_id for effect in effects if isinstance(effect, SendMessage)] == expected

    def test_a_worker_that_now_and_then_proposes_what_is_committed_is_not_rested(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="remote", max_tokens=5000), now=0.0)
        now = 0.0
        for step in range(600):
            now = verify_begins(machine, now=now + 0.02)
            says = acknowledgement(2 + machine._sessions[SessionId(1)].end - 3)
            if step % 20 == 19:
                says = structs.replace(says, first_node_id=NodeId(step), parent_ids=(0,), tokens=(7,), log_probs=(-0.1,))
            machine.handle(DraftsReceived(worker_id=WorkerId(1), drafts=says), now=now)
            machine.handle(verified(*answers(machine)), now=now)
        assert machine._workers[WorkerId(1)].sessions == {1}

    def test_what_one_worker_proposed_is_not_put_down_to_the_next(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="remote"), now=0.0)
        machine.handle(verified(7), now=0.1)
        says = structs.replace(acknowledgement(3), parent_ids=(0, 1), tokens=(8, 9), log_probs=(-0.1, -0.1))
        machine.handle(DraftsReceived(worker_id=WorkerId(1), drafts=says), now=0.2)
        machine.handle(joined(2), now=0.2)
        machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.2)
        machine.handle(verified(8, 9, 5), now=0.2 + MAX_HEAD_START_S)
        record = machine._workers[WorkerId(2)]
        assert (record.committed, record.useful, record.reliability.log_prob(-0.1)) == (3.0, 0.0, -0.1)

    def test_a_worker_is_not_judged_by_what_many_users_commit_before_its_first_drafts_can_be_there(self) -> None:
        machine = controller()
        machine.handle(joined(1, max_sessions=64), now=0.0)
        for session_id in range(1, 65):
            machine.handle(arrival(session_id, policy="remote", max_tokens=5000), now=0.0)
        worker, now = machine._workers[WorkerId(1)], 0.0
        while worker.sessions and now < 1.0:
            now = verify_begins(machine, now=now + 0.02)
            passes = machine._passes._in_flight[PassKind.VERIFY].rows
            choices = tuple(tuple(TargetChoice(token=7, entropy_nats=0.0) for _ in rows) for _, rows in passes)
            machine.handle(VerifyFinished(choices=choices, duration_s=0.02), now=now)
        assert worker.head_start_s < now < worker.head_start_s + 0.2

    def test_of_two_openings_at_one_worker_the_later_counts(self) -> None:
        machine = controller()
        machine.handle(joined(1), now=0.0)
        machine.handle(arrival(1, policy="remote", max_tokens=5000), now=0.0)
        rested_at, _ = rounds_until_rest(machine, now=0.1)
        assert opened(time_passes(machine, until=rested_at + FIRST_REST_S + 0.01)) == [1]
        late = structs.replace(acknowledgement(3), first_node_id=NodeId(900), parent_ids=(0,), tokens=(8,), log_probs=(-0.1,))
        machine.handle(DraftsReceived(worker_id=WorkerId(1), drafts=late), now=rested_at + FIRST_REST_S)
        link = machine._sessions[SessionId(1)].link
        assert link is not None
        assert link.newest_node_id == 0

    def test_local_drafts_have_their_own_device_where_there_is_one(self) -> None:
        machine = Controller(vocabulary_size=100, end_tokens=(0,), has_draft_device=True)
        machine.handle(arrival(1), now=0.0)
        machine.handle(arrival(2, policy="autoregressive"), now=0.0)
        effects = machine.handle(verified(7), now=0.1)  # 1 wants to draft, 2 its prefill
        assert [item.session_id for item in only(effects, StartDraft).items] == [1]
        assert [item.session_id for item in only(effects, StartVerify).items] == [2]
        assert [type(effect) for effect in machine.handle(joined(1), now=0.1)] == [SendMessage]  # a ping
        assert [item.session_id for item in only(machine.handle(drafted(8), now=0.2), StartDraft).items] == [1]


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
        heard = DraftsReceived(worker_id=session.link.worker_id, drafts=acknowledgement(session.end - 1))
        machine.handle(heard, now=now)
        said = [effect for effect in machine.handle(verified(*answers(machine)), now=now) if isinstance(effect, SendMessage)]
        if any(isinstance(effect.message, CloseSession) for effect in said):
            return now, said
    raise AssertionError("the worker is never rested")


def drafts_received(worker_id: int, *, session_id: int, base: int = 2) -> DraftsReceived:
    drafts = Drafts(
        session_id=SessionId(session_id),
        base_position=Position(base),
        held_s=0.0,
        step_s=0.007,
        first_node_id=NodeId(1),
        parent_ids=(),
        tokens=(),
        log_probs=(),
    )
    return DraftsReceived(worker_id=WorkerId(worker_id), drafts=drafts)


def open_session(
    session_id: int = 1,
    *,
    tokens: tuple[int, ...] = (1, 2, 3),
    branch: int = 1,
    leaves: int = 1,
    max_depth: int = 16,
    path_prob_min: float = 0.0,
    is_calibrated: bool = False,
    opening: int = 1,
) -> OpenSession:
    drafting = DraftingConfig(
        branch=branch,
        leaves=leaves,
        entropy_threshold_nats=0.5,
        max_depth=max_depth,
        path_prob_min=path_prob_min,
        is_calibrated=is_calibrated,
    )
    return OpenSession(session_id=SessionId(session_id), opening=opening, tokens=tokens, sampling=SamplingParams(), drafting=drafting)


def commit(position: int, *tokens: int, newest_node_id: int = 0) -> Commit:
    return Commit(session_id=SessionId(1), position=Position(position), tokens=tokens, newest_node_id=newest_node_id)


def tell(machine: Worker, message: ControllerMessage, *, now: float = 0.0) -> list[Effect]:
    return machine.handle(MessageReceived(message=message), now=now)


def worker(*, max_sessions: int = 2, context_length: int = 50) -> Worker:
    return Worker(vocabulary_size=100, context_length=context_length, max_sessions=max_sessions)


def sent(effects: list[Effect]) -> Drafts:
    message = only(effects, SendMessage).message
    assert isinstance(message, Drafts)
    return message


class TestWorker:
    def test_it_drafts_at_once_and_goes_on_without_being_asked(self) -> None:
        machine = worker()
        (item,) = only(tell(machine, open_session()), StartDraft).items
        assert item.append == (1, 2, 3)
        effects = machine.handle(drafted(7), now=0.5)
        drafts = sent(effects)
        assert (drafts.base_position, drafts.tokens, drafts.parent_ids, drafts.held_s) == (2, (7,), (0,), 0.5)
        assert [node.token for node in only(effects, StartDraft).items[0].nodes] == [7]

    def test_a_commit_of_what_it_drafted_keeps_the_tree(self) -> None:
        machine = worker()
        tell(machine, open_session())
        machine.handle(drafted(7), now=0.1)
        machine.handle(drafted(8), now=0.2)
        tell(machine, commit(3, 7), now=0.25)
        effects = machine.handle(drafted(9), now=0.3)
        drafts = sent(effects)
        assert (drafts.base_position, drafts.tokens, drafts.parent_ids) == (3, (9,), (3,))
        (item,) = only(effects, StartDraft).items
        assert (len(item.commit), item.append, [node.token for node in item.nodes]) == (1, (), [9])

    def test_a_correction_starts_afresh_with_one_catch_up_pass(self) -> None:
        machine = worker()
        tell(machine, open_session())
        machine.handle(drafted(7), now=0.1)
        tell(machine, commit(3, 7, 5, 6), now=0.15)
        effects = machine.handle(drafted(8), now=0.2)  # computed below 7, which is no longer the end
        (item,) = only(effects, StartDraft).items
        assert (len(item.commit), item.append) == (1, (5, 6))
        drafts = sent(machine.handle(drafted(9), now=0.3))
        assert (drafts.base_position, drafts.parent_ids, drafts.tokens) == (5, (0,), (9,))

    def test_it_branches_where_it_is_undecided(self) -> None:
        machine = worker()
        tell(machine, open_session(branch=2, leaves=2))
        effects = machine.handle(drafted(7, entropy_nats=1.0), now=0.1)
        assert sent(effects).tokens == (7, 90)
        assert len(only(effects, StartDraft).items[0].nodes) == 2

    def test_with_nothing_to_draft_it_acknowledges_all_the_same(self) -> None:
        machine = worker()
        tell(machine, open_session(max_depth=1))
        assert not [e for e in machine.handle(drafted(7), now=0.1) if isinstance(e, StartDraft)]
        machine = worker(context_length=3)
        assert sent(tell(machine, open_session())).tokens == ()

    def test_repeated_and_overlapping_commits_do_no_harm(self) -> None:
        machine = worker(context_length=4)
        tell(machine, open_session())
        machine.handle(drafted(7), now=0.1)
        tell(machine, commit(3, 7), now=0.2)
        assert sent(tell(machine, commit(3, 7), now=0.3)).base_position == 3
        assert sent(tell(machine, commit(2, 3, 7), now=0.3)).base_position == 3

    def test_a_commit_said_again_after_hours_is_acknowledged_as_old_as_the_wire_can_say(self) -> None:
        machine = worker(context_length=3)
        tell(machine, open_session())
        assert sent(tell(machine, commit(2, 3), now=1e5)).held_s == MAX_HELD_S

    def test_it_stops_at_so_many_unacknowledged_nodes_and_goes_on_when_they_have_arrived(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wanspec.protocol.worker.MAX_UNACKNOWLEDGED_NODES", 3)
        machine = worker()
        effects, sent_nodes, token = tell(machine, open_session(max_depth=64)), 0, 7
        while [effect for effect in effects if isinstance(effect, StartDraft)]:
            effects, token = machine.handle(drafted(token), now=0.1), token + 1
            sent_nodes += len(sent(effects).tokens)
        assert sent_nodes == 3  # ids count from 2: the root has one too
        newest = sent(effects).first_node_id
        assert [type(effect) for effect in tell(machine, commit(3, 7, newest_node_id=newest - 2))] == [StartDraft]

    def test_a_commit_that_acknowledges_nothing_does_not_open_the_window(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wanspec.protocol.worker.MAX_UNACKNOWLEDGED_NODES", 0)
        machine = worker()
        tell(machine, open_session())
        first = sent(machine.handle(drafted(7), now=0.1)).first_node_id
        assert sent(tell(machine, commit(3, 7))).tokens == ()
        only(tell(machine, commit(4, 8, newest_node_id=first)), StartDraft)
        machine.handle(drafted(9), now=0.2)
        assert sent(tell(machine, commit(5, 9))).tokens == ()  # what is acknowledged stays so, and the newest is not

    def test_when_all_that_is_under_way_was_lost_it_goes_on_as_soon_as_one_word_of_it_gets_through(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wanspec.protocol.worker.MAX_UNACKNOWLEDGED_NODES", 3)
        machine = worker()
        effects, token = tell(machine, open_session(max_depth=64)), 7
        while [effect for effect in effects if isinstance(effect, StartDraft)]:
            effects, token = machine.handle(drafted(token), now=0.1), token + 1
        newest = sent(effects).first_node_id
        answer = sent(tell(machine, commit(3, 7)))
        assert (answer.tokens, answer.first_node_id) == ((), newest + 1)
        assert [type(effect) for effect in tell(machine, commit(4, 8, newest_node_id=newest))] == [StartDraft]

    def test_it_repeats_with_every_message_which_opening_it_drafts_for(self) -> None:
        machine = worker()
        tell(machine, open_session(opening=3))
        assert sent(machine.handle(drafted(7), now=0.1)).opening == 3
        tell(machine, CloseSession(session_id=SessionId(1)))
        tell(machine, open_session(opening=4))
        machine.handle(drafted(7), now=0.2)
        assert sent(machine.handle(drafted(7), now=0.3)).opening == 4

    def test_what_was_too_improbable_is_sent_when_the_head_comes_near(self) -> None:
        machine = worker()
        tell(machine, open_session(branch=2, path_prob_min=0.1))
        assert sent(machine.handle(ranked((7, 9), (-1.0, -5.0)), now=0.1)).tokens == (7,)
        assert sent(machine.handle(ranked((8, 4), (-0.5, -2.0)), now=0.2)).tokens == (8,)
        released = sent(tell(machine, commit(3, 7), now=0.3))
        assert (released.base_position, released.tokens, released.parent_ids, released.held_s) == (3, (4,), (0,), 0.0)

    def test_however_much_is_sent_at_once_every_message_fits_a_frame(self) -> None:
        machine = worker(context_length=500)
        effects = tell(machine, open_session(branch=8, leaves=128, max_depth=64, path_prob_min=2e-4))
        flat = (math.log(1 / 8),) * 8
        effects = machine.handle(ranked(tuple(range(8)), (math.log(0.5), *[-15.0] * 7)), now=0.1)
        while passes := [effect for effect in effects if isinstance(effect, StartDraft)]:
            rows = len(passes[0].items[0].next_positions)
            effects = machine.handle(ranked(tuple(range(8)), flat, rows=rows), now=0.1)
        effects = tell(machine, commit(3, 0), now=0.2)  # twice as probable now: a whole level is
        messages = [effect.message for effect in effects if isinstance(effect, SendMessage)]
        assert all(isinstance(message, Drafts) and 0 < len(message.tokens) <= MAX_NODES_PER_FRAME for message in messages)
        counted = [(message.first_node_id, len(message.tokens)) for message in messages if isinstance(message, Drafts)]
        assert sum(count for _, count in counted) > MAX_NODES_PER_FRAME
        assert all(before[0] + before[1] == after[0] for before, after in pairwise(counted))

    def test_the_scale_of_its_estimates_is_learned_from_what_is_committed(self) -> None:
        machine = worker(context_length=1000)
        effects = tell(machine, open_session(branch=2, is_calibrated=True))
        position, estimates = 3, []
        for step in range(120):
            effects = machine.handle(ranked((7, 8), (-0.7, -0.8)), now=0.1)
            estimates.append(sent(effects).log_probs[0])
            tell(machine, commit(position, 7 if step % 2 else 50))  # half of the time neither
            effects = machine.handle(ranked((7, 8), (-0.7, -0.8)), now=0.1)
            position += 1
        assert estimates[-1] < estimates[0] - 0.2

    def test_how_long_its_steps_take_goes_with_every_message(self) -> None:
        machine = worker()
        assert sent(tell(worker(context_length=3), open_session())).step_s == 0.0
        tell(machine, open_session())
        assert sent(machine.handle(drafted(7), now=0.1)).step_s == pytest.approx(0.007)
        slow = structs.replace(drafted(8), duration_s=0.017)
        assert sent(machine.handle(slow, now=0.2)).step_s == pytest.approx(0.009)
        endless = structs.replace(drafted(9), duration_s=1e6)
        assert sent(machine.handle(endless, now=0.3)).step_s == MAX_STEP_S

    def test_a_closed_session_is_freed_and_its_pass_forgotten(self) -> None:
        machine = worker()
        tell(machine, open_session())
        assert tell(machine, CloseSession(session_id=SessionId(1))) == [ReleaseSession(session_id=SessionId(1))]
        assert machine.handle(drafted(7), now=0.1) == []
        assert tell(machine, CloseSession(session_id=SessionId(1))) == []

    def test_a_pass_that_was_never_asked_for_is_refused(self) -> None:
        with pytest.raises(LocalProtocolError, match="no draft pass"):
            worker().handle(drafted(7), now=0.0)

    def test_it_answers_a_ping_at_once(self) -> None:
        assert tell(worker(), Ping(number=3)) == [SendMessage(worker_id=None, message=Pong(number=3))]

    def test_it_leaves_a_controller_that_it_has_not_heard_for_some_pings(self) -> None:
        machine = Worker(vocabulary_size=100, context_length=50, max_sessions=2, connected_at=1.0)
        assert machine.next_deadline() == 1.0 + CONTROLLER_LOST_S
        tell(machine, Ping(number=1), now=2.0)
        assert machine.handle(DeadlineReached(), now=1.0 + CONTROLLER_LOST_S) == []
        left = only(machine.handle(DeadlineReached(), now=2.0 + CONTROLLER_LOST_S), LeaveController)
        assert "not been heard for 6 s" in left.reason

    def test_it_does_not_blame_the_controller_for_its_own_sleep(self) -> None:
        machine = Worker(vocabulary_size=100, context_length=50, max_sessions=2, connected_at=1.0)
        assert machine.handle(DeadlineReached(), now=500.0) == []
        assert machine.next_deadline() == 500.0 + CONTROLLER_LOST_S

    def test_without_a_controller_there_is_no_deadline(self) -> None:
        machine = worker()
        assert machine.next_deadline() is None
        assert machine.handle(DeadlineReached(), now=1.0) == []

    def test_it_opens_a_session_once(self) -> None:
        machine = worker()
        tell(machine, open_session())
        tell(machine, open_session())
        assert machine.num_sessions == 1

    def test_a_commit_for_a_session_that_it_has_not_is_late(self) -> None:
        assert tell(worker(), commit(3, 7)) == []

    def test_draining_is_remembered(self) -> None:
        machine = worker()
        tell(machine, Drain(reason="bye"))
        assert machine.is_draining

    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            (commit(9, 5), "leaves a gap"),
            (commit(3, 5, newest_node_id=1), "node 1 has arrived, the newest is 0"),
            (commit(3, 5, newest_node_id=-1), "node -1 has arrived, the newest is 0"),
            (commit(3, 100), "outside the vocabulary"),
            (commit(3, *[5] * (MAX_SEQUENCE_TOKENS - 2)), "a commit of 131070 tokens at position 3, beyond MAX_SEQUENCE_TOKENS"),
            (structs.replace(open_session(2), sampling=SamplingParams(temperature=1e308)), "session 2: temperature must be"),
            (open_session(2, tokens=()), "has no tokens"),
            (open_session(2, tokens=(100,)), "outside the vocabulary"),
            (Welcome(version=1, controller_name="c"), "second welcome"),
        ],
    )
    def test_what_no_honest_controller_sends_is_refused(self, message: ControllerMessage, reason: str) -> None:
        machine = worker()
        tell(machine, open_session())
        with pytest.raises(RemoteProtocolError, match=reason):
            tell(machine, message)

    def test_text_beyond_its_context_is_acknowledged_and_not_drafted(self) -> None:
        machine = worker(context_length=5)
        assert sent(tell(machine, open_session(tokens=(1,) * 9))).tokens == ()
        assert sent(tell(machine, commit(9, *[1] * 100))).base_position == 108

    def test_far_more_sessions_than_offered_are_refused(self) -> None:
        machine = worker(max_sessions=1)
        tell(machine, open_session(1))
        tell(machine, open_session(2))
        with pytest.raises(RemoteProtocolError, match="far beyond the 1 sessions"):
            tell(machine, open_session(3))
