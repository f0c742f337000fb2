"""What the controller tells of its rounds and its workers, beyond what it asks for: the facts behind an operator's figures."""

from __future__ import annotations

import pytest

from wanspec.policy.registry import PolicyConfig
from wanspec.protocol.controller import Controller
from wanspec.protocol.effects import DraftsMerged, DropWorker, Effect, LossCause, RoundFinished, StartVerify
from wanspec.protocol.events import (
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    PongReceived,
    RequestArrived,
    VerifyFinished,
    WorkerJoined,
)
from wanspec.protocol.messages import Drafts
from wanspec.protocol.workforce import WORKER_SILENCE_S
from wanspec.speculation.types import DraftChoices, NodeId, Position, SamplingParams, SessionId, TargetChoice, WorkerId


def started(policy: str, *, workers: int) -> Controller:
    """A controller whose one request, of three tokens, has its prefill under way."""
    machine = Controller(vocabulary_size=100, end_tokens=())
    for number in range(1, workers + 1):
        machine.handle(WorkerJoined(worker_id=WorkerId(number), name="w", max_sessions=4), now=0.0)
    config = PolicyConfig(name=policy, num_draft_tokens=2)
    machine.handle(
        RequestArrived(session_id=SessionId(1), prompt_tokens=(1, 2, 3), sampling=SamplingParams(), max_tokens=50, policy=config), now=0.0
    )
    return machine


def verified(*tokens: int, entropy_nats: float, duration_s: float = 0.02) -> VerifyFinished:
    row = tuple(TargetChoice(token=token, entropy_nats=entropy_nats) for token in tokens)
    return VerifyFinished(choices=(row,), duration_s=duration_s)


def drafted(token: int) -> DraftFinished:
    return DraftFinished(choices=((DraftChoices(tokens=(token,), log_probs=(-0.1,), entropy_nats=0.5),),), duration_s=0.007)


def proposed(token: int, *, node_id: int, parent_id: int = 0, base: int = 3) -> DraftsReceived:
    drafts = Drafts(
        session_id=SessionId(1), opening=1, base_position=Position(base), held_s=0.0, step_s=0.007, first_node_id=NodeId(node_id),
        parent_ids=(parent_id,), tokens=(token,), log_probs=(-0.1,),
    )  # fmt: skip
    return DraftsReceived(worker_id=WorkerId(1), drafts=drafts)


def the_round(effects: list[Effect]) -> RoundFinished:
    (finished,) = [effect for effect in effects if isinstance(effect, RoundFinished)]
    return finished


def test_a_round_tells_of_the_worker_that_drafted_for_it_and_how_long_it_was_waited_for() -> None:
    machine = started("remote", workers=1)
    prefill = the_round(machine.handle(verified(7, entropy_nats=1.5), now=0.1))
    assert (prefill.entropy_before_nats, prefill.worker_id, prefill.proposed, prefill.waits) == (None, 1, 0, 0)
    assert not any(isinstance(effect, StartVerify) for effect in machine.handle(proposed(8, node_id=1), now=0.15))
    assert any(isinstance(effect, StartVerify) for effect in machine.handle(proposed(9, node_id=2, parent_id=1), now=0.2))
    finished = the_round(machine.handle(verified(8, 9, 10, entropy_nats=0.2, duration_s=0.06), now=0.3))
    assert (finished.accepted, finished.committed, finished.proposed, finished.local_drafts) == (2, 3, 2, 0)
    assert (finished.entropy_before_nats, finished.entropy_nats) == (1.5, 0.2)
    assert finished.draft_ages_s == pytest.approx((0.09, 0.04))
    assert finished.waits == 1  # though it was asked twice
    assert finished.waited_s == pytest.approx(0.1)


def test_a_round_tells_of_its_own_local_drafts_alone() -> None:
    machine = started("colocated", workers=0)
    machine.handle(verified(7, entropy_nats=0.0), now=0.1)
    machine.handle(drafted(8), now=0.2)
    machine.handle(drafted(9), now=0.3)
    finished = the_round(machine.handle(verified(8, 5, 6, entropy_nats=0.0), now=0.4))
    assert (finished.local_drafts, finished.waits, finished.worker_id, finished.proposed) == (2, 0, None, 0)
    assert (finished.accepted, finished.draft_ages_s) == (1, ())
    machine.handle(drafted(8), now=0.5)
    machine.handle(drafted(9), now=0.6)
    assert the_round(machine.handle(verified(1, 2, 3, entropy_nats=0.0), now=0.7)).local_drafts == 2


def test_a_draft_that_comes_after_its_token_was_committed_is_late() -> None:
    machine = started("remote", workers=1)
    machine.handle(verified(7, entropy_nats=0.0), now=0.1)
    (merged,) = [effect for effect in machine.handle(proposed(7, node_id=1, base=2), now=0.2) if isinstance(effect, DraftsMerged)]
    assert (merged.joined, merged.late, merged.duplicates, merged.stale) == (1, 1, 0, 0)


def test_why_a_worker_is_dropped_is_told_apart() -> None:
    liar = started("remote", workers=1)
    (drop,) = [effect for effect in liar.handle(PongReceived(worker_id=WorkerId(1), number=77), now=0.1) if isinstance(effect, DropWorker)]
    assert (drop.cause, drop.is_at_fault) == (LossCause.PROTOCOL, True)
    assert drops(started("remote", workers=1), is_answered=False) == [(LossCause.SILENT, False)]
    assert drops(started("remote", workers=1), is_answered=True) == [(LossCause.UNANSWERED, True)]


def drops(machine: Controller, *, is_answered: bool) -> list[tuple[LossCause, bool]]:
    """Why workers are dropped that answer pings, or not even these, and never draft."""
    found: list[tuple[LossCause, bool]] = []
    number = 1
    while (deadline := machine.next_deadline()) is not None and deadline < 2 * WORKER_SILENCE_S and not found:
        effects = machine.handle(DeadlineReached(), now=deadline)
        found = [(effect.cause, effect.is_at_fault) for effect in effects if isinstance(effect, DropWorker)]
        if is_answered and not found:
            machine.handle(PongReceived(worker_id=WorkerId(1), number=number), now=deadline)
            number += 1
    return found
