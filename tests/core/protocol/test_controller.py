"""The controller alone: what it does with one event at a time, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.core.protocol.events import PromptController, arrival, controller, drafted, drafts, joined, only, opened, received, verified

from wanspec.core.policy.interface import Decision, DraftLocally, Policy, Situation, Verify, Wait
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.effects import (
    EmitTokens,
    FinishReason,
    FinishRequest,
    ReleaseSession,
    RoundFinished,
    SendMessage,
    StartDraft,
    StartVerify,
)
from wanspec.core.protocol.events import (
    DeadlineReached,
    PassFailed,
    PassKind,
    PongReceived,
    RequestArrived,
    RequestCancelled,
    VerifyFinished,
)
from wanspec.core.protocol.messages import OpenSession
from wanspec.core.protocol.site import MAX_PATIENT_RTT_S
from wanspec.core.speculation.types import (
    DraftingConfig,
    SessionId,
    TargetChoices,
    WorkerId,
)
from wanspec.errors import LocalProtocolError


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


def test_a_draft_model_is_asked_for_nothing_beyond_its_context() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,), draft_context_length=5)
    machine.handle(arrival(1), now=0.0)
    (item,) = only(machine.handle(verified(7), now=0.1), StartDraft).items
    assert item.append == (1, 2, 3, 7)
    (item,) = only(machine.handle(drafted(8), now=0.2), StartDraft).items
    assert [node.token for node in item.nodes] == [8]  # the fifth token
    (item,) = only(machine.handle(drafted(9), now=0.3), StartVerify).items
    assert [node.token for node in item.nodes] == [8, 9]
    for tokens in ((8, 5), (6,)):  # from here on the text is too long
        (item,) = only(machine.handle(verified(*tokens), now=0.4), StartVerify).items
        assert item.nodes == ()


def test_of_several_nodes_those_within_the_context_are_drafted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,), draft_context_length=5)
    for event in (arrival(1), verified(7)):
        machine.handle(event, now=0.0)
    session = machine._sessions[SessionId(1)]

    def both(*_: object, **__: object) -> DraftLocally:
        child = session.tree.head.children[8]
        below = session.tree.add(child, 9, log_prob=0.0)
        assert below is not None
        return DraftLocally((child, below))

    monkeypatch.setattr(session.policy, "decide", both)
    (item,) = only(machine.handle(drafted(8), now=0.1), StartDraft).items
    assert [node.token for node in item.nodes] == [8]


def test_the_text_ends_at_the_end_token_even_in_the_middle_of_a_round() -> None:
    machine = controller()
    for event in (arrival(1), verified(7), drafted(0), drafted(9)):
        machine.handle(event, now=0.0)
    effects = machine.handle(verified(0, 9, 6), now=0.0)
    assert only(effects, EmitTokens).tokens == (0,)
    assert only(effects, FinishRequest).reason is FinishReason.END
    assert only(effects, ReleaseSession).session_id == 1


def test_a_text_goes_on_behind_an_end_token_where_that_is_asked_for() -> None:
    machine = controller(replace(arrival(1), ignores_end=True))
    for event in (verified(7), drafted(0), drafted(9)):
        machine.handle(event, now=0.0)
    effects = machine.handle(verified(0, 9, 6), now=0.0)
    assert only(effects, EmitTokens).tokens == (0, 9, 6)
    assert [effect for effect in effects if isinstance(effect, FinishRequest)] == []


def test_of_several_end_tokens_the_first_to_come_ends_the_text() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0, 50))
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
    monkeypatch.setattr("wanspec.core.speculation.tree.MAX_TREE_NODES", 1)
    machine = controller(arrival(1))
    machine.handle(verified(7), now=0.1)
    (item,) = only(machine.handle(drafted(8), now=0.2), StartVerify).items
    assert (item.append, item.nodes) == ((7,), ())


def test_local_drafts_have_their_own_device_where_there_is_one() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,), has_draft_device=True)
    machine.handle(arrival(1), now=0.0)
    machine.handle(arrival(2, policy="autoregressive"), now=0.0)
    effects = machine.handle(verified(7), now=0.1)  # 1 wants to draft, 2 its prefill
    assert [item.session_id for item in only(effects, StartDraft).items] == [1]
    assert [item.session_id for item in only(effects, StartVerify).items] == [2]
    assert [type(effect) for effect in machine.handle(joined(1), now=0.1)] == [SendMessage]  # a ping
    assert [item.session_id for item in only(machine.handle(drafted(8), now=0.2), StartDraft).items] == [1]


@given(tokens=st.lists(st.integers(0, 5), max_size=8), max_tokens=st.integers(2, 8))
def test_no_more_drafts_are_accepted_than_tokens_committed(tokens: list[int], max_tokens: int) -> None:
    """Whatever ends the text, its length or an end token among the accepted drafts."""
    policy = PolicyConfig(name="colocated", num_draft_tokens=len(tokens) or 1)
    machine = controller(arrival(1, policy=policy, max_tokens=max_tokens))
    effects = machine.handle(verified(7), now=0.1)
    for token in tokens:
        if not any(isinstance(effect, StartDraft) for effect in effects):
            break
        effects = machine.handle(drafted(token), now=0.2)
    if any(isinstance(effect, StartVerify) for effect in effects):
        (item,) = only(effects, StartVerify).items
        finished = only(machine.handle(verified(*[node.token for node in item.nodes], 9), now=0.3), RoundFinished)
        assert finished.accepted <= min(finished.drafted, finished.committed)


def test_a_wait_ends_in_time_while_the_other_device_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scripted(Policy):
        drafting = local_drafting = DraftingConfig()

        def __init__(self, decide: Callable[[Situation, float], Decision]) -> None:
            self._decide, self.asked = decide, 0

        def decide(self, situation: Situation, *, now: float) -> Decision:
            self.asked += 1
            return self._decide(situation, now)

    drafter = Scripted(lambda situation, _: DraftLocally((situation.tree.head,)))
    waiter = Scripted(lambda _, now: Wait(0.12) if now < 0.12 else Verify())
    policies = iter([drafter, waiter])
    monkeypatch.setattr("wanspec.core.protocol.controller.create_policy", lambda _: next(policies))
    machine = PromptController(vocabulary_size=100, end_tokens=(0,), has_draft_device=True)
    machine.handle(joined(1), now=0.0)
    machine.handle(arrival(1), now=0.0)
    machine.handle(arrival(2), now=0.0)
    machine.handle(verified(10), now=0.05)  # 1 drafts on its own device, 2 prefills on the target's
    machine.handle(verified(20), now=0.1)  # 2 waits, and the target is free
    assert machine.next_deadline() == 0.12
    asked = waiter.asked
    machine.handle(PongReceived(worker_id=WorkerId(1), number=1), now=0.11)
    machine.handle(received(drafts(3, [], session_id=1)), now=0.111)
    assert waiter.asked == asked  # nothing has changed for it
    machine.handle(received(drafts(3, [], session_id=2)), now=0.112)
    assert waiter.asked == asked + 1
    (item,) = only(machine.handle(DeadlineReached(), now=0.12), StartVerify).items
    assert item.session_id == 2


def test_a_request_that_ends_as_its_worker_is_rested_is_opened_nowhere() -> None:
    machine = controller(joined(1), arrival(1, policy="remote"), joined(2))
    worker = machine._workers[WorkerId(1)]
    worker.committed(200, proposed=0, now=0.0)
    effects = machine.handle(verified(0), now=0.1)
    assert opened(effects) == []
    assert only(effects, FinishRequest).session_id == 1


@pytest.mark.parametrize(
    "end", [VerifyFinished(choices=(TargetChoices(tokens=(4,)),) * 3, duration_s=0.02), PassFailed(kind=PassKind.VERIFY, reason="")]
)
def test_of_requests_that_end_in_one_pass_none_gets_the_place_of_another(end: VerifyFinished | PassFailed) -> None:
    short = [arrival(number, policy="remote", max_tokens=1) for number in (2, 3)]
    machine = controller(arrival(1, policy="autoregressive"), joined(1, max_sessions=1), *short, verified(7))
    effects = machine.handle(end, now=0.1)
    assert {2, 3} <= {effect.session_id for effect in effects if isinstance(effect, FinishRequest)}
    assert opened(effects) == []


def test_a_request_that_goes_on_is_opened_at_a_place_that_becomes_free_with_all_that_the_pass_has_committed() -> None:
    asked = [arrival(number, policy="remote", max_tokens=number - 1) for number in (2, 3)]
    machine = controller(arrival(1, policy="autoregressive"), joined(1, max_sessions=1), *asked, verified(7))
    effects = machine.handle(VerifyFinished(choices=(TargetChoices(tokens=(4,)),) * 3, duration_s=0.02), now=0.1)
    (_, opening) = [effect.message for effect in effects if isinstance(effect, SendMessage)]
    assert isinstance(opening, OpenSession)
    assert (opening.session_id, opening.tokens) == (3, (1, 2, 3, 4))
