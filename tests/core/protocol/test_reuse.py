"""What workers are told of reuse keys: which sessions share one, and no more."""

from __future__ import annotations

import pytest
from tests.core.protocol.events import PromptController, arrival, joined

from wanspec.core.protocol import reuse
from wanspec.core.protocol.effects import Effect, SendMessage, StartDraft
from wanspec.core.protocol.events import DraftFinished, MessageReceived, RequestCancelled, WorkerLost
from wanspec.core.protocol.messages import CloseSession, OpenSession
from wanspec.core.protocol.reuse import ReuseNumbers
from wanspec.core.protocol.worker import INITIAL_STEP_S, Worker
from wanspec.core.speculation.types import DraftChoices, DraftingConfig, SamplingParams, SessionId, WorkerId


def numbers(effects: list[Effect]) -> list[int]:
    """Of the openings that leave."""
    messages = [effect.message for effect in effects if isinstance(effect, SendMessage)]
    return [message.reuse_number for message in messages if isinstance(message, OpenSession)]


def test_a_key_has_one_number_and_no_key_none() -> None:
    given = ReuseNumbers()
    assert [given.of(key) for key in ("alice", "bob", None, "alice", "carol", "bob")] == [1, 2, 0, 1, 3, 2]


def test_a_number_that_was_forgotten_is_never_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "MAX_NUMBERED_KEYS", 2)
    given = ReuseNumbers()
    assert [given.of(key) for key in ("a", "b", "a", "c", "b", "a")] == [1, 2, 1, 3, 4, 5]


def test_a_worker_hears_the_number_of_a_requests_key_and_after_it_was_away_another() -> None:
    machine = PromptController(vocabulary_size=100, end_tokens=(0,))
    machine.handle(joined(1), now=0.0)
    heard = [
        numbers(machine.handle(arrival(number, policy="remote", reuse_key=key), now=0.0))
        for number, key in enumerate(("bob", "alice", None, "bob"), start=1)
    ]
    assert heard == [[1], [2], [0], [1]]
    machine.handle(RequestCancelled(session_id=SessionId(1)), now=0.0)
    machine.handle(WorkerLost(worker_id=WorkerId(1)), now=0.0)
    again = machine.handle(joined(2), now=0.0)
    assert numbers(again) == [1, 0, 2]  # alice's, nobody's and bob's


def opening(session_id: int, reuse_number: int) -> MessageReceived:
    message = OpenSession(
        session_id=SessionId(session_id),
        tokens=(1,) * 8,
        sampling=SamplingParams(),
        drafting=DraftingConfig(),
        reuse_number=reuse_number,
    )
    return MessageReceived(message=message)


def test_a_worker_hands_its_model_the_number_and_learns_no_times_from_what_may_be_kept() -> None:
    machine = Worker(vocabulary_size=100, context_length=64, max_sessions=8)
    ranking = DraftChoices(tokens=(3,), log_probs=(-0.1,), entropy_nats=1.0)
    keys = []
    for session_id, reuse_number in enumerate((7, 0), start=1):
        effects = machine.handle(opening(session_id, reuse_number), now=0.0)
        ((item,),) = [effect.items for effect in effects if isinstance(effect, StartDraft)]
        keys.append(item.reuse_key)
        machine.handle(MessageReceived(message=CloseSession(session_id=SessionId(session_id))), now=0.0)
        machine.handle(DraftFinished(choices=((ranking,),), duration_s=5.0), now=0.0)
        assert machine._pass_times.expected_s(8) == (INITIAL_STEP_S if reuse_number else 5.0)
    assert keys == ["7", None]
