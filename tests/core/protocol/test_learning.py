"""What a pass's end does at once, since the device waits for it, and what is learned from the round after the next pass has started."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from tests.core.protocol.events import arrival, drafted, drafts, joined, only, opened, received, verified

from wanspec.core.policy.interface import Decision, DraftLocally, Policy, Situation, Verify, Wait
from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import Effect, EmitTokens, FinishRequest, RoundFinished, SendMessage, StartDraft, StartVerify
from wanspec.core.protocol.events import ControllerEvent, DeadlineReached, PongReceived, RequestCancelled, VerifyFinished, WorkerLost
from wanspec.core.protocol.session import Session
from wanspec.core.speculation.calibration import Calibration
from wanspec.core.speculation.reliability import Reliability
from wanspec.core.speculation.types import DraftChoices, DraftingConfig, SessionId, TargetChoices, WorkerId


def machine_after(*events: ControllerEvent) -> Controller:
    """One to which these have happened, all at once, and which has learned from them."""
    machine = Controller(vocabulary_size=100, end_tokens=(0,))
    for event in events:
        machine.handle(event, now=0.0)
    machine.handle(DeadlineReached(), now=0.0)
    return machine


def session_of(machine: Controller, session_id: int = 1) -> Session:
    return machine._sessions[SessionId(session_id)]


def all_commit(*tokens: int) -> VerifyFinished:
    """A pass in which each session gets one token."""
    return VerifyFinished(choices=tuple([TargetChoices(tokens=(token,)) for token in tokens]), duration_s=0.02)


def kinds(effects: Sequence[Effect]) -> list[type]:
    return [type(effect) for effect in effects]


@pytest.mark.parametrize("policy", ["autoregressive", "colocated", "adaptive", "remote"])
def test_a_pass_starts_before_its_round_is_learned_from_and_the_machine_asks_to_be_called_at_once(policy: str) -> None:
    machine = machine_after(joined(1), arrival(1, policy=policy))
    effects = machine.handle(verified(7), now=0.1)
    starts = [] if policy == "remote" else kinds(effects)[:1]  # which waits for its worker
    assert starts in ([], [StartVerify], [StartDraft])
    assert [kind for kind in kinds(effects) if kind is not SendMessage] == [*starts, EmitTokens]
    assert machine.next_deadline() == 0.1
    assert kinds(machine.handle(DeadlineReached(), now=0.1)) == [RoundFinished]
    assert machine.next_deadline() != 0.1


@pytest.mark.parametrize("event", [PongReceived(worker_id=WorkerId(1), number=1), received(drafts(2, [7])), arrival(2), joined(2)])
def test_whatever_happens_next_is_a_time_to_learn(event: ControllerEvent) -> None:
    machine = machine_after(joined(1), arrival(1, policy="autoregressive"))
    machine.handle(verified(7), now=0.1)
    effects = machine.handle(event, now=0.2)
    assert isinstance(effects[0], RoundFinished)  # before what the event itself brings
    assert machine.next_deadline() != 0.2


def test_what_is_learned_comes_after_the_pass_that_the_same_event_starts() -> None:
    machine = machine_after(joined(1), arrival(1, policy=PolicyConfig(name="remote", num_draft_tokens=1)))
    machine.handle(verified(7), now=0.1)
    effects = machine.handle(received(drafts(3, [8])), now=0.2)
    assert kinds(effects)[:2] == [StartVerify, RoundFinished]


def test_a_round_that_ends_its_request_is_learned_from_at_once() -> None:
    machine = machine_after(arrival(1, policy="autoregressive", max_tokens=1))
    effects = machine.handle(verified(7), now=0.1)
    assert kinds(effects)[:3] == [EmitTokens, RoundFinished, FinishRequest]
    assert machine.next_deadline() is None


def test_a_request_that_is_cancelled_before_its_round_is_learned_from_has_had_it() -> None:
    machine = machine_after(arrival(1, policy="autoregressive"))
    machine.handle(verified(7), now=0.1)
    assert kinds(machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.1))[:2] == [RoundFinished, FinishRequest]


ALONE_S = 0.03


class Counted(Policy):
    """Does as it is told; counts how often it is asked, and told to learn."""

    alone_token_s = ALONE_S
    local_drafting = DraftingConfig(is_calibrated=True)

    def __init__(self) -> None:
        self.drafting = DraftingConfig()
        self.wants: type[Verify | DraftLocally | Wait] = Verify
        self.asked = self.learned = 0

    def decide(self, situation: Situation, *, now: float) -> Decision:
        self.asked += 1
        if self.wants is Wait:
            return Wait(now + 60.0)
        return DraftLocally((situation.tree.head,)) if self.wants is DraftLocally else Verify()

    def learn(self) -> None:
        self.learned += 1


def test_a_policy_learns_once_for_each_pass_that_is_started_on_its_word_and_from_no_mere_question(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Counted()
    monkeypatch.setattr("wanspec.core.protocol.controller.create_policy", lambda _: policy)
    machine = machine_after(joined(1), arrival(1), verified(7))
    before = policy.learned
    machine.handle(verified(7), now=0.1)
    assert policy.learned == before  # the pass has only just started
    for now in (0.1, 0.2):
        machine.handle(DeadlineReached(), now=now)
        assert policy.learned == before + 1
    policy.wants = Wait
    machine.handle(verified(7), now=0.3)
    asked = policy.asked
    for number in range(5):
        machine.handle(received(drafts(4 + min(1, number))), now=0.4 + number / 100)
    assert policy.asked == asked + 5
    assert policy.learned == before + 1
    policy.wants = DraftLocally
    machine.handle(received(drafts(5)), now=0.5)
    machine.handle(DeadlineReached(), now=0.5)
    assert policy.learned == before + 2


def test_sessions_that_are_in_no_pass_learn_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = [Counted(), Counted()]
    unused = iter(policies)
    monkeypatch.setattr("wanspec.core.protocol.controller.create_policy", lambda _: next(unused))
    machine = machine_after(joined(1), arrival(1), arrival(2), verified(7))
    policies[1].wants = Wait
    before = [policy.learned for policy in policies]
    machine.handle(all_commit(4, 4), now=0.1)
    machine.handle(DeadlineReached(), now=0.1)
    assert [policy.learned for policy in policies] == [before[0] + 1, before[1]]


def test_the_calibration_learns_when_the_next_pass_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def observe(calibration: Calibration, choices: DraftChoices, token: int) -> None:
        del calibration, choices
        told.append(token)

    monkeypatch.setattr(Calibration, "observe", observe)
    machine = machine_after(arrival(1, policy=PolicyConfig(name="colocated-tree", num_draft_tokens=1)), verified(7), drafted(8))
    machine.handle(verified(8, 5), now=0.1)
    assert told == []
    machine.handle(DeadlineReached(), now=0.1)
    assert told == [8]  # the draft model was not asked what follows the 8


def test_all_that_a_worker_claimed_of_the_committed_tokens_places_is_put_to_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    tested: list[tuple[float, bool]] = []

    def observe(reliability: Reliability, claim: float, *, came_true: bool) -> None:
        del reliability
        tested.append((claim, came_true))

    monkeypatch.setattr(Reliability, "observe", observe)
    machine = machine_after(joined(1), arrival(1, policy=PolicyConfig(name="remote", num_draft_tokens=1)), verified(7))
    says = drafts(3, [8, 9, 5, 6], parents=[0, 0, 1, 1])  # 8 and 9 after the 7, and 5 and 6 after the 8
    machine.handle(received(says), now=0.1)
    machine.handle(verified(8, 4), now=0.2)  # only one of the four was verified
    assert tested == []
    machine.handle(DeadlineReached(), now=0.2)
    assert sorted(came_true for _, came_true in tested) == [False, False, False, True]


def test_what_a_worker_says_after_the_token_was_committed_is_no_credit_to_it() -> None:
    machine = machine_after(joined(1), arrival(1, policy="remote"))
    machine.handle(verified(7), now=0.1)
    finished = only(machine.handle(received(drafts(2, [7])), now=0.2), RoundFinished)
    assert (finished.worker_id, finished.proposed) == (1, 0)


def test_a_round_lasts_until_its_tokens_are_committed_however_late_it_is_learned_from() -> None:
    machine = machine_after(arrival(1, policy="autoregressive"))
    machine.handle(verified(7), now=0.1)
    assert machine._pace.bottom == 0.0  # the prefill is no round
    machine.handle(verified(8), now=0.15)
    machine.handle(DeadlineReached(), now=9.0)
    assert (machine._pace.top, machine._pace.bottom) == pytest.approx((0.05, 1.0))


def test_the_pace_is_that_of_all_sessions_of_a_worker_and_of_those_that_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.protocol.controller.create_policy", lambda _: Counted())
    machine = machine_after(joined(1, max_sessions=2), *[arrival(number) for number in (1, 2, 3)], verified(7))
    for now in (0.1, 0.2):
        machine.handle(all_commit(4, 4, 4), now=now)
    machine.handle(DeadlineReached(), now=0.2)
    worker = machine._workers[WorkerId(1)]
    shown = {number: machine._situation(session_of(machine, number), 0.2) for number in (1, 2, 3)}
    assert [shown[number].worker_is_live for number in (1, 2, 3)] == [True, True, False]
    assert shown[1].pace is shown[2].pace is worker.pace
    assert shown[1].pace_alone is worker.pace_alone
    assert shown[3].pace is shown[3].pace_alone is machine._pace
    assert (worker.pace.top, worker.pace.bottom) == pytest.approx((0.3, 3.0), rel=0.01)  # two rounds of the first, one of the second
    assert worker.pace_alone.top == pytest.approx(3 * ALONE_S, rel=0.01)
    assert (machine._pace.top, machine._pace.bottom) == pytest.approx((0.1, 1.0))


def test_of_a_worker_that_is_lost_before_the_round_is_learned_from_the_round_still_tells() -> None:
    machine = machine_after(joined(1), joined(2), arrival(1, policy="remote"))
    machine.handle(verified(7), now=0.1)
    effects = machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.1)
    assert only(effects, RoundFinished).worker_id == 1
    assert opened(effects) == [2]


def test_a_session_that_gets_another_worker_before_its_round_is_learned_from_owes_that_one_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wanspec.core.protocol.controller.create_policy", lambda _: Counted())
    short = arrival(2, max_tokens=1)
    machine = machine_after(joined(1, max_sessions=1), joined(2, max_sessions=1), arrival(1), short, verified(7))
    session = session_of(machine)
    machine.handle(received(drafts(3, [8, 9], parents=[0, 0])), now=0.1)
    assert opened(machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.1)) == []
    effects = machine.handle(all_commit(8, 5), now=0.2)  # which ends the other, whose place becomes free
    assert opened(effects) == [2]
    assert only(machine.handle(DeadlineReached(), now=0.2), RoundFinished).worker_id is None
    assert session.tree.num_arrived == sum(node.arrived_at is not None for node in session.tree.nodes.values())
    assert machine._workers[WorkerId(2)].tried_tokens == 1  # the last of the other


def test_a_round_in_which_somebodys_long_prompt_was_computed_says_nothing_of_the_worker() -> None:
    never = PolicyConfig(name="adaptive", redundancy_price_s=math.inf)
    machine = machine_after(joined(1), arrival(1, policy=never))
    worker = machine._workers[WorkerId(1)]
    machine.handle(verified(7), now=0.1)
    machine.handle(arrival(2, prompt=(5,) * 1000, policy="autoregressive"), now=0.1)  # waits for the pass in flight
    machine.handle(all_commit(8), now=0.2)
    machine.handle(all_commit(9, 9), now=5.0)  # with the prompt in it
    machine.handle(DeadlineReached(), now=5.0)
    assert (worker.pace.top, worker.pace.bottom) == pytest.approx((0.1, 1.0))  # the round before
    assert worker.tried_tokens == 3


def test_a_requests_last_round_counts_for_its_worker() -> None:
    machine = machine_after(joined(1), arrival(1, max_tokens=2, policy="adaptive"))
    worker = machine._workers[WorkerId(1)]
    machine.handle(verified(7), now=0.1)
    effects = machine.handle(verified(8), now=0.2)
    assert [kind for kind in kinds(effects) if kind in {RoundFinished, FinishRequest}] == [RoundFinished, RoundFinished, FinishRequest]
    assert worker.tried_tokens == 2
