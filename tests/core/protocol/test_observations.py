"""What the controller tells of its rounds and its workers, beyond what it asks for: the facts behind an operator's figures."""

from __future__ import annotations

import pytest
from tests.core.protocol.events import PromptController, arrival, drafted, drafts, joined, only, received, verified

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import DraftsMerged, DropWorker, LossCause, RoundFinished, StartVerify
from wanspec.core.protocol.events import (
    DeadlineReached,
    PongReceived,
)
from wanspec.core.protocol.workforce import WORKER_UNANSWERED_S
from wanspec.core.speculation.types import WorkerId


def started(policy: str, *, workers: int) -> Controller:
    """A controller whose one request, of three tokens, has its prefill under way."""
    machine = PromptController(vocabulary_size=100, end_tokens=())
    for number in range(1, workers + 1):
        machine.handle(joined(number), now=0.0)
    machine.handle(arrival(policy=PolicyConfig(name=policy, num_draft_tokens=2), max_tokens=50), now=0.0)
    return machine


def test_a_round_tells_of_the_worker_that_drafted_for_it_and_how_long_it_was_waited_for() -> None:
    machine = started("remote", workers=1)
    prefill = only(machine.handle(verified(7, entropy_nats=1.5), now=0.1), RoundFinished)
    assert (prefill.entropy_before_nats, prefill.worker_id, prefill.proposed, prefill.waits) == (None, 1, 0, 0)
    assert not any(isinstance(effect, StartVerify) for effect in machine.handle(received(drafts(3, [8])), now=0.15))
    assert any(isinstance(effect, StartVerify) for effect in machine.handle(received(drafts(3, [9], first=2, parents=[1])), now=0.2))
    finished = only(machine.handle(verified(8, 9, 10, entropy_nats=0.2, duration_s=0.06), now=0.3), RoundFinished)
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
    finished = only(machine.handle(verified(8, 5, entropy_nats=0.0), now=0.4), RoundFinished)
    assert (finished.local_drafts, finished.waits, finished.worker_id, finished.proposed) == (2, 0, None, 0)
    assert (finished.accepted, finished.draft_ages_s) == (1, ())
    machine.handle(drafted(8), now=0.5)
    machine.handle(drafted(9), now=0.6)
    assert only(machine.handle(verified(1, entropy_nats=0.0), now=0.7), RoundFinished).local_drafts == 2


def test_a_draft_that_comes_after_its_token_was_committed_is_late() -> None:
    machine = started("remote", workers=1)
    machine.handle(verified(7, entropy_nats=0.0), now=0.1)
    merged = only(machine.handle(received(drafts(2, [7])), now=0.2), DraftsMerged)
    assert (merged.joined, merged.late, merged.duplicates, merged.stale) == (1, 1, 0, 0)


def test_why_a_worker_is_dropped_is_told_apart() -> None:
    liar = started("remote", workers=1)
    drop = only(liar.handle(PongReceived(worker_id=WorkerId(1), number=77), now=0.1), DropWorker)
    assert (drop.cause, drop.is_at_fault) == (LossCause.PROTOCOL, True)
    assert drops(started("remote", workers=1), is_answered=False) == [(LossCause.SILENT, False)]
    assert drops(started("remote", workers=1), is_answered=True) == [(LossCause.UNANSWERED, True)]


def drops(machine: Controller, *, is_answered: bool) -> list[tuple[LossCause, bool]]:
    """Why workers are dropped that answer pings, or not even these, and never draft."""
    found: list[tuple[LossCause, bool]] = []
    number = 1
    while (deadline := machine.next_deadline()) is not None and deadline < 2 * WORKER_UNANSWERED_S and not found:
        effects = machine.handle(DeadlineReached(), now=deadline)
        found = [(effect.cause, effect.is_at_fault) for effect in effects if isinstance(effect, DropWorker)]
        if is_answered and not found:
            machine.handle(PongReceived(worker_id=WorkerId(1), number=number), now=deadline)
            number += 1
    return found
