"""The controller alone: what it does with one event at a time, and what it refuses."""

from __future__ import annotations

import pytest
from tests.protocol.events import arrival, controller, drafted, drafts, joined, only, received, verified

from wanspec.errors import LocalProtocolError
from wanspec.protocol.controller import MAX_PATIENT_RTT_S, Controller
from wanspec.protocol.effects import (
    EmitTokens,
    FinishReason,
    FinishRequest,
    ReleaseSession,
    SendMessage,
    StartDraft,
    StartVerify,
)
from wanspec.protocol.events import (
    PassFailed,
    PassKind,
    RequestArrived,
    RequestCancelled,
    VerifyFinished,
)
from wanspec.speculation.types import (
    SessionId,
    TargetChoices,
)


def test_the_first_pass_is_the_prefill_and_carries_no_drafts() -> None:
    (item,) = only(controller().handle(arrival(1), now=0.0), StartVerify).items
    assert (item.append, item.nodes, item.next_positions) == ((1, 2, 3), (), (3,))


def test_a_round_goes_draft_draft_verify_and_commits_what_was_accepted() -> None:
    machine = controller(arrival(1))
    (item,) = only(machine.handle(verified(7), now=0.1), StartDraft).items
    assert item.append == (1, 2, 3, 7)  # one batched catch-up
    (item,) = only(machine.handle(drafted(8), now=0.2), StartDraft).items
    assert [node.token for node in item.nodes] == [8]
    (item,) = only(machine.handle(drafted(9), now=0.3), StartVerify).items
    assert (item.append, [node.token for node in item.nodes]) == ((7,), [8, 9])
    emitted = only(machine.handle(verified(8, 5), now=0.4), EmitTokens)
    assert (emitted.position, emitted.tokens) == (4, (8, 5))


def test_the_text_ends_at_the_end_token_even_in_the_middle_of_a_round() -> None:
    machine = controller()
    for event in (arrival(1), verified(7), drafted(0), drafted(9)):
        machine.handle(event, now=0.0)
    effects = machine.handle(verified(0, 9, 6), now=0.0)
    assert only(effects, EmitTokens).tokens == (0,)
    assert only(effects, FinishRequest).reason is FinishReason.END
    assert only(effects, ReleaseSession).session_id == 1


def test_of_several_end_tokens_the_first_to_come_ends_the_text() -> None:
    machine = Controller(vocabulary_size=100, end_tokens=(0, 50))
    for event in (arrival(1), verified(7), drafted(50), drafted(0)):
        machine.handle(event, now=0.0)
    effects = machine.handle(verified(50, 0, 6), now=0.0)
    assert only(effects, EmitTokens).tokens == (50,)
    assert only(effects, FinishRequest).reason is FinishReason.END


def test_sessions_that_want_the_same_share_a_pass() -> None:
    machine = controller(arrival(1, policy="autoregressive"), arrival(2, policy="autoregressive"))
    items = only(machine.handle(verified(7), now=0.1), StartVerify).items
    assert [item.session_id for item in items] == [1, 2]


def test_verify_and_draft_take_turns() -> None:
    machine = controller(arrival(1, policy="autoregressive"), arrival(2))
    effects = machine.handle(verified(7), now=0.1)  # 1 wants its next token, 2 its prefill
    assert len(only(effects, StartVerify).items) == 2
    both = VerifyFinished(choices=(TargetChoices(tokens=(4,)),) * 2, duration_s=0.02)
    assert [item.session_id for item in only(machine.handle(both, now=0.2), StartDraft).items] == [2]
    assert [item.session_id for item in only(machine.handle(drafted(8), now=0.3), StartVerify).items] == [1]


def test_the_patience_does_not_grow_with_whatever_round_trip_a_worker_shows() -> None:
    machine = controller(joined(1), arrival(1, policy="remote"))
    machine.handle(received(drafts(2)), now=9.0)
    machine.handle(verified(7), now=9.0)
    machine.handle(received(drafts(3)), now=9.1)
    deadline = machine._sessions[SessionId(1)].wait_until
    assert deadline is not None
    assert 9.0 + 2 * MAX_PATIENT_RTT_S < deadline < 9.1 + 2 * MAX_PATIENT_RTT_S


def test_a_cancelled_session_ends_at_once_and_its_pass_is_forgotten() -> None:
    machine = controller(arrival(1))
    assert only(machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.1), FinishRequest).reason is FinishReason.CANCELLED
    assert machine.handle(verified(7), now=0.2) == []
    assert machine.num_sessions == 0
    assert machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.3) == []


def test_a_failed_pass_ends_its_sessions_with_the_reason() -> None:
    machine = controller(arrival(1))
    finished = only(machine.handle(PassFailed(kind=PassKind.VERIFY, reason="out of memory"), now=0.1), FinishRequest)
    assert (finished.reason, finished.message) == (FinishReason.ERROR, "out of memory")


@pytest.mark.parametrize(
    "event", [arrival(0), arrival(5, max_tokens=0), verified(7), drafted(7), PassFailed(kind=PassKind.DRAFT, reason="")]
)
def test_a_driver_that_uses_it_wrongly_is_told(event: RequestArrived) -> None:
    with pytest.raises(LocalProtocolError):
        controller().handle(event, now=0.0)


def test_the_drafts_of_a_request_that_has_ended_are_forgotten() -> None:
    machine = controller(arrival(1))
    only(machine.handle(verified(7), now=0.1), StartDraft)
    machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.2)
    assert machine.handle(drafted(8), now=0.3) == []


def test_a_policy_that_wants_more_than_the_tree_can_hold_gets_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.speculation.tree.MAX_TREE_NODES", 1)
    machine = controller(arrival(1))
    machine.handle(verified(7), now=0.1)
    (item,) = only(machine.handle(drafted(8), now=0.2), StartVerify).items
    assert (item.append, item.nodes) == ((7,), ())


def test_local_drafts_have_their_own_device_where_there_is_one() -> None:
    machine = Controller(vocabulary_size=100, end_tokens=(0,), has_draft_device=True)
    machine.handle(arrival(1), now=0.0)
    machine.handle(arrival(2, policy="autoregressive"), now=0.0)
    effects = machine.handle(verified(7), now=0.1)  # 1 wants to draft, 2 its prefill
    assert [item.session_id for item in only(effects, StartDraft).items] == [1]
    assert [item.session_id for item in only(effects, StartVerify).items] == [2]
    assert [type(effect) for effect in machine.handle(joined(1), now=0.1)] == [SendMessage]  # a ping
    assert [item.session_id for item in only(machine.handle(drafted(8), now=0.2), StartDraft).items] == [1]
