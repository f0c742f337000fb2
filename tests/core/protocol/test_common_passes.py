"""Passes that many sessions share: who gets how much of them, and whether one is worth the wait of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from tests.core.protocol.events import PromptController, arrival, controller, drafted, drafts, joined, received

from wanspec.core.policy.interface import Decision, DraftLocally, Verify
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import EmitTokens, StartDraft, StartVerify
from wanspec.core.protocol.events import DraftFinished, PassKind, RequestArrived, RequestCancelled, VerifyFinished, WorkerLost
from wanspec.core.protocol.passes import INITIAL_DRAFT_STEP_S, Passes
from wanspec.core.protocol.session import Session
from wanspec.core.speculation.model_view import MAX_PIECE_TOKENS, NEAR_TOKENS, ModelView
from wanspec.core.speculation.tree import Node
from wanspec.core.speculation.types import SamplingParams, SessionId, TargetChoices, WorkerId

STEP_S, FREE_TOKENS = 0.02, 16


def machine_with(sessions: int) -> Controller:
    """A controller whose target computes FREE_TOKENS in one step and no more for nothing, and knows it; the prefills are done."""
    machine = PromptController(vocabulary_size=100, end_tokens=(0,))
    for number in range(1, sessions + 1):
        machine.handle(arrival(number, policy=PolicyConfig(name="adaptive", lookup=False), prompt=(1, 2), max_tokens=50), now=0.0)
    for tokens in (1, 2, 4, 8, FREE_TOKENS, 2 * FREE_TOKENS, 4 * FREE_TOKENS, 8 * FREE_TOKENS):
        machine._passes.target_times.add(tokens, STEP_S * max(1.0, tokens / FREE_TOKENS))
    return machine


def grown(session: Session, prob: float, depth: int) -> tuple[Node, ...]:
    """A chain of drafts that is right as often as that at each step."""
    nodes: list[Node] = []
    for token in range(depth):
        node = session.tree.add(nodes[-1] if nodes else session.tree.head, token, log_prob=math.log(prob))
        assert node is not None
        nodes.append(node)
    return tuple(nodes)


def verified(decisions: Sequence[tuple[Session, Decision]], machine: Controller) -> list[tuple[Session, tuple[Node, ...]]]:
    """What a common target pass verifies of each session's."""
    return machine._passes.nodes_to_verify(decisions, instead_of_drafts=True)


@pytest.mark.parametrize(("prob", "fewest", "most"), [(0.01, 12, FREE_TOKENS), (0.95, 32, 32), (0.9, 24, 30)])
def test_alone_too_a_session_gets_what_is_worth_its_time(prob: float, fewest: int, most: int) -> None:
    machine = machine_with(1)
    (session,) = machine._sessions.values()
    nodes = grown(session, prob, 32)
    ((_, got),) = verified([(session, Verify(nodes, gives_way=True, token_s=STEP_S))], machine)
    assert got == nodes[: len(got)]
    assert fewest <= len(got) <= most  # what is free is taken; beyond, a node must be worth a sixteenth of a step


def test_what_many_ask_for_is_cut_to_what_is_worth_its_time_and_the_surer_get_more() -> None:
    machine = machine_with(4)
    sessions = list(machine._sessions.values())
    asked = [
        (s, Verify(grown(s, prob, 16), gives_way=True, token_s=STEP_S)) for s, prob in zip(sessions, (0.95, 0.8, 0.5, 0.1), strict=True)
    ]
    got = verified(asked, machine)
    counts = [len(nodes) for _, nodes in got]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[3] == 0
    assert 0.5 * FREE_TOKENS < 4 + sum(counts) < 2.5 * FREE_TOKENS
    for (_, nodes), (_, decision) in zip(got, asked, strict=True):
        assert nodes == decision.nodes[: len(nodes)]  # parents before children: what is left is connected


def test_what_does_not_give_way_is_left_whole() -> None:
    machine = machine_with(2)
    first, second = machine._sessions.values()
    firm, soft = Verify(grown(first, 0.1, 16)), Verify(grown(second, 0.01, 16), gives_way=True, token_s=STEP_S)
    assert verified([(first, firm), (second, soft)], machine) == [(first, firm.nodes), (second, ())]
    draft = DraftLocally((second.tree.head,), gain_s=1.0, otherwise=soft)  # it would have drafted, were it the draft model's turn
    assert verified([(first, firm), (second, draft)], machine) == [(first, firm.nodes), (second, ())]


def test_a_draft_pass_must_gain_its_sessions_more_than_the_others_wait() -> None:
    machine = machine_with(2)
    machine._passes.draft_times.add(1, 0.01)
    first, _ = machine._sessions.values()
    draft = DraftLocally((first.tree.head,), gain_s=0.015)
    assert machine._passes.are_drafts_first([draft, Verify()])
    assert not machine._passes.are_drafts_first([draft, Verify(), Verify()])
    assert machine._passes.are_drafts_first([draft])
    assert not machine._passes.are_drafts_first([Verify()])
    for bystanders, are_first in ((1, True), (2, False)):
        assert machine._passes.are_drafts_first([draft], bystanders=bystanders) == are_first


def test_a_draft_model_that_catches_up_in_pieces_takes_turns_with_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.passes.MAX_PIECE_TOKENS", NEAR_TOKENS + 1)
    machine = machine_with(2)
    first, second = machine._sessions.values()
    first.draft_view = ModelView(first.session_id, SamplingParams(), (1,) * 10 * NEAR_TOKENS)
    machine._passes.end(PassKind.VERIFY, now=-1.0)
    decisions: list[tuple[Session, Decision]] = [(first, DraftLocally((first.tree.head,), gain_s=1e6)), (second, Verify())]
    kinds = []
    for now in range(4):
        (effect,) = machine._passes.start(decisions)
        kinds.append(type(effect))
        kind = PassKind.DRAFT if isinstance(effect, StartDraft) else PassKind.VERIFY
        machine._passes.end(kind, 0.01, now=float(now))
        assert machine._passes.disturbed_at == now - (kind is PassKind.VERIFY)
    assert kinds == [StartDraft, StartVerify, StartDraft, StartVerify]


def test_asking_a_draft_model_again_costs_a_hundredth_of_the_time_and_all_that_it_has_not_seen_is_counted() -> None:
    machine = machine_with(1)
    (session,) = machine._sessions.values()
    passes = machine._passes
    for size in (1, 100):
        passes.draft_times.add(size, 0.01 * size)
    passes._drafted_at, passes._drafted_s = 10.0, 0.015
    assert session.draft_tokens([session.tree.head]) == session.num_prompt_tokens == 2
    assert not passes.is_draft_due(session, now=10.0 + 1.9, num_sessions=1)
    assert passes.is_draft_due(session, now=10.0 + 2.1, num_sessions=1)
    assert not passes.is_draft_due(session, now=10.0 + 7.9, num_sessions=4)
    assert passes.is_draft_due(session, now=10.0 + 8.1, num_sessions=4)
    session.draft_view.plan(session.tree, [])
    assert not passes.is_draft_due(session, now=10.0 + 1.4, num_sessions=1)
    assert passes.is_draft_due(session, now=10.0 + 1.6, num_sessions=1)


@pytest.mark.parametrize(("gain_s", "drafting"), [(1e6, 1), (math.inf, 3)])
def test_the_first_draft_pass_is_for_one_session_unless_they_draft_at_any_price(gain_s: float, drafting: int) -> None:
    machine = machine_with(3)
    machine._passes.end(PassKind.VERIFY, now=-1.0)
    wanted: list[tuple[Session, Decision]] = [
        (session, DraftLocally((session.tree.head,), gain_s=gain_s)) for session in machine._sessions.values()
    ]
    (effect,) = machine._passes.start(wanted)
    assert isinstance(effect, StartDraft)
    assert len(effect.items) == drafting
    machine._passes.end(PassKind.DRAFT, 0.01, now=0.0)
    (effect,) = machine._passes.start(wanted)
    assert isinstance(effect, StartDraft)
    assert len(effect.items) == 3


@pytest.mark.parametrize(("gains_s", "is_made"), [((0.02, -0.005, -0.005), True), ((0.005, -0.005, -0.005), False), ((0.0,), False)])
def test_a_local_pass_is_made_where_the_gains_of_all_repay_the_time_of_all(gains_s: Sequence[float], is_made: bool) -> None:  # noqa: FBT001
    machine = machine_with(len(gains_s))
    machine._passes.end(PassKind.VERIFY, now=-1.0)
    machine._passes.draft_times.add(1, 0.006)
    wanted: list[tuple[Session, Decision]] = [
        (session, DraftLocally((session.tree.head,), gain_s=gain_s))
        for session, gain_s in zip(machine._sessions.values(), gains_s, strict=True)
    ]
    (effect,) = machine._passes.start(wanted)
    assert isinstance(effect, StartDraft if is_made else StartVerify)
    assert len(effect.items) == len(gains_s)


def test_on_a_device_of_its_own_a_draft_model_drafts_for_those_who_are_repaid() -> None:
    passes = Passes(has_draft_device=True, has_draft_model=True)
    passes.draft_times.add(1, 0.006)
    sessions = list(machine_with(2)._sessions.values())
    decisions: list[tuple[Session, Decision]] = [
        (session, DraftLocally((session.tree.head,), gain_s=gain_s)) for session, gain_s in zip(sessions, (0.01, -0.001), strict=True)
    ]
    assert passes.drafting(decisions) == [(sessions[0], (sessions[0].tree.head,))]


def test_what_a_draft_pass_took_counts_in_the_next_decision() -> None:
    machine = machine_with(1)
    (session,) = machine._sessions.values()
    machine._passes.end(PassKind.VERIFY, now=-1.0)
    situation = machine._situation(session, 0.0)
    assert situation.alone(32).draft_s == INITIAL_DRAFT_STEP_S
    machine._passes.start([(session, DraftLocally((session.tree.head,)))])
    machine.end_pass(PassKind.DRAFT, 0.5, now=1.0)
    assert situation.alone(32).draft_s > 0.1


@pytest.mark.parametrize(("reuse_key", "expected"), [(None, 64), ("alice", 0)])
def test_a_prompt_that_the_draft_model_may_have_seen_is_not_charged(reuse_key: str | None, expected: int) -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,))
    policy = PolicyConfig(name="adaptive")
    arrival = RequestArrived(
        session_id=SessionId(1), prompt_tokens=(1,) * 64, sampling=SamplingParams(), max_tokens=9, policy=policy, reuse_key=reuse_key
    )
    machine.handle(arrival, now=0.0)
    (session,) = machine._sessions.values()
    assert session.draft_tokens([session.tree.head]) == expected


def test_where_it_does_not_those_who_wanted_it_verify_with_the_others() -> None:
    machine = machine_with(8)
    machine._passes.draft_times.add(1, 10.0)  # so slow that it never pays
    machine._passes._drafted_at = 0.0  # and just tried
    started: list[object] = []
    for round_ in range(6):
        (in_flight,) = machine._passes._in_flight.values()
        choices = (TargetChoices(tokens=(7,)),) * len(in_flight.rows)
        started += machine.handle(VerifyFinished(choices=choices, duration_s=STEP_S), now=0.02 * round_)
    assert not [effect for effect in started if isinstance(effect, StartDraft)]
    verifies = [effect for effect in started if isinstance(effect, StartVerify)]
    assert verifies
    assert all(len(effect.items) >= 7 for effect in verifies)


@pytest.mark.parametrize("reuse_key", [None, "alice"])
def test_a_first_pass_that_may_go_on_from_kept_tokens_tells_nothing_of_what_tokens_take(reuse_key: str | None) -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,))
    policy = PolicyConfig(name="autoregressive")
    arrival = RequestArrived(
        session_id=SessionId(1), prompt_tokens=(1,) * 64, sampling=SamplingParams(), max_tokens=9, policy=policy, reuse_key=reuse_key
    )
    before = machine._passes.target_times.expected_s(64)
    first_pass = VerifyFinished(choices=(TargetChoices(tokens=(7,)),), duration_s=5.0)
    effects = [*machine.handle(arrival, now=0.0), *machine.handle(first_pass, now=5.0)]
    keys = [item.reuse_key for effect in effects if isinstance(effect, StartVerify) for item in effect.items]
    assert keys == [reuse_key, None]  # named once: afterwards the model has a cache of the session's own
    assert machine._passes.target_times.expected_s(64) == (5.0 if reuse_key is None else before)


def texts_read(effects: Sequence[object], kind: type[StartVerify | StartDraft] | None = None) -> dict[int, int]:
    """How many tokens of each session's text the pass that starts computes."""
    (items,) = [effect.items for effect in effects if isinstance(effect, kind or StartVerify | StartDraft)]
    return {item.session_id: len(item.append) for item in items}


def pass_of(*tokens: tuple[int, ...]) -> VerifyFinished:
    return VerifyFinished(choices=tuple([TargetChoices(tokens=each) for each in tokens]), duration_s=STEP_S)


def test_a_long_prompt_is_computed_in_pieces_beside_the_rounds_of_the_others() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,))
    machine.handle(arrival(1, policy="autoregressive", max_tokens=50), now=0.0)
    for number in (2, 3):
        machine.handle(arrival(number, policy="autoregressive", prompt=(1,) * (2 * MAX_PIECE_TOKENS), max_tokens=50), now=0.0)
    assert texts_read(machine.handle(pass_of((7,)), now=0.1)) == {1: 1, 2: MAX_PIECE_TOKENS}  # the third has to wait
    effects = machine.handle(pass_of((8,), ()), now=0.2)
    assert [effect.session_id for effect in effects if isinstance(effect, EmitTokens)] == [1]  # nothing follows a piece
    assert texts_read(effects) == {1: 1, 2: MAX_PIECE_TOKENS}
    effects = machine.handle(pass_of((9,), (5,)), now=0.3)
    assert [effect.session_id for effect in effects if isinstance(effect, EmitTokens)] == [1, 2]
    assert texts_read(effects) == {1: 1, 2: 1, 3: MAX_PIECE_TOKENS}


def test_what_is_nearly_computed_waits_for_nobodys_long_prompt() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,))
    lengths = {1: 1, 2: MAX_PIECE_TOKENS + 1, 3: NEAR_TOKENS, 4: NEAR_TOKENS + 1}
    for number, length in lengths.items():
        machine.handle(arrival(number, policy="autoregressive", prompt=(1,) * length, max_tokens=50), now=0.0)
    assert texts_read(machine.handle(pass_of((7,)), now=0.1)) == {1: 1, 2: MAX_PIECE_TOKENS, 3: NEAR_TOKENS}
    assert texts_read(machine.handle(pass_of((7,), (), (7,)), now=0.2)) == {1: 1, 2: 1, 3: 1, 4: NEAR_TOKENS + 1}


def test_the_draft_model_too_computes_a_long_prompt_in_pieces_and_nothing_is_drafted_before_it_has() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,))
    machine.handle(arrival(1, policy="colocated", prompt=(1,) * MAX_PIECE_TOKENS, max_tokens=50), now=0.0)
    assert texts_read(machine.handle(pass_of((7,)), now=0.1)) == {1: MAX_PIECE_TOKENS}
    effects = machine.handle(DraftFinished(choices=((),), duration_s=0.01), now=0.2)
    assert texts_read(effects) == {1: 1}
    (session,) = machine._sessions.values()
    assert list(session.tree.drafts()) == []
    machine.handle(drafted(8), now=0.3)
    assert [node.token for node in session.tree.drafts()] == [8]


def test_a_request_that_is_cancelled_while_its_prompt_is_computed_in_pieces_is_over() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,))
    machine.handle(arrival(1, policy="autoregressive", prompt=(1,) * (MAX_PIECE_TOKENS + 1)), now=0.0)
    machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.1)
    assert machine.handle(pass_of(()), now=0.2) == []


def test_while_a_worker_is_to_be_waited_for_no_draft_pass_is_due_for_the_sake_of_finding_out() -> None:
    machine = controller(joined(1), arrival(1, policy="adaptive"))
    (session,) = machine._sessions.values()
    machine.handle(received(drafts(2)), now=100.0)
    assert not machine._situation(session, 100.1).is_draft_due
    machine.handle(WorkerLost(worker_id=WorkerId(1)), now=100.2)
    assert machine._situation(session, 100.3).is_draft_due


def test_where_the_draft_model_has_its_own_device_a_second_draft_pass_waits_for_the_first() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,), has_draft_device=True)
    for number in (1, 2):
        machine.handle(arrival(number), now=0.0)
    assert texts_read(machine.handle(pass_of((7,)), now=0.1), StartDraft) == {1: 4}
    effects = machine.handle(pass_of((7,)), now=0.2)
    assert not [effect for effect in effects if isinstance(effect, StartDraft | StartVerify)]
    assert texts_read(machine.handle(drafted(8), now=0.3), StartDraft) == {1: 0, 2: 4}
