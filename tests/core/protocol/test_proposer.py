"""The proposer machine: rows in, chains out, with the real worker machine or with a hand that speaks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest
from tests.core.protocol.events import Tokens, drafts, joined, only, received

from wanspec.core.protocol.effects import DraftsMerged, DraftsProposed, DropWorker, Effect, RoundFinished, SendMessage
from wanspec.core.protocol.events import DeadlineReached, PongReceived, Row, StepFinished, WorkerLost
from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS, CloseSession, Commit, Message, OpenSession, Ping
from wanspec.core.protocol.placement import Placement
from wanspec.core.protocol.pool import TRIAL_TOKENS
from wanspec.core.protocol.proposer import ABSENT_S, IDLE_S, MAX_ABSENT, Proposer
from wanspec.core.protocol.rows import MAX_MISSED_TOKENS
from wanspec.core.protocol.workforce import WORKER_UNANSWERED_S
from wanspec.core.speculation.types import DraftingConfig, Position, SessionId, WorkerId

T = TypeVar("T")
ONE, TWO = WorkerId(1), WorkerId(2)
VOCABULARY = 1000
DRAFTING = DraftingConfig(branch=8, leaves=64, max_depth=64, path_prob_min=0.001, is_calibrated=True)


class Engine:
    """An engine that shows rows to the machine, and workers that a test speaks for."""

    def __init__(self, *, placement: Placement | None = None, max_length: int = 100_000, max_draft_tokens: int = 4) -> None:
        self.machine = Proposer(
            vocabulary_size=VOCABULARY,
            max_length=max_length,
            max_draft_tokens=max_draft_tokens,
            path_prob_min=0.1,
            drafting=DRAFTING,
            placement=placement or Placement(),
        )
        self.now = 0.0
        self.effects: list[Effect] = []

    def step(self, *rows: tuple[Sequence[int], int]) -> list[tuple[int, ...]]:
        """Rows of tokens, and how many of them are new; the chains."""
        self.now += 0.01
        event = StepFinished(rows=tuple(Row(tokens=Tokens(tokens), num_new=num_new) for tokens, num_new in rows))
        self.effects = self.machine.handle(event, now=self.now)
        self.effects += self.machine.learn(self.now)  # while the engine verifies
        (proposed,) = [effect for effect in self.effects if isinstance(effect, DraftsProposed)]
        return list(proposed.chains)

    def join(self, worker_id: WorkerId = ONE, *, max_sessions: int = 8, labels: tuple[str, ...] = ()) -> None:
        self.effects = self.machine.handle(joined(worker_id, max_sessions=max_sessions, labels=labels), now=self.now)

    def draft(
        self, session: int, base: int, tokens: Sequence[int], *, first: int = 1, worker_id: WorkerId = ONE, opening: int = 1,
        log_prob: float = -0.1,
    ) -> None:  # fmt: skip
        """A chain of drafts below the committed token at position `base`."""
        says = drafts(base, tokens, session_id=session, opening=opening, first=first, log_prob=log_prob)
        self.effects = self.machine.handle(received(says, worker_id=worker_id), now=self.now)

    def passes(self, seconds: float) -> list[Effect]:
        """Time passes, and every deadline in it is told; workers answer their pings."""
        until, effects = self.now + seconds, []
        while (deadline := self.machine.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            news = self.machine.handle(DeadlineReached(), now=self.now)
            effects += news
            for worker_id, ping in sent(news, Ping):
                self.machine.handle(PongReceived(worker_id=worker_id, number=ping.number), now=self.now)
        self.now = until
        return effects


def sent(effects: Sequence[Effect], kind: type[T]) -> list[tuple[WorkerId, T]]:
    return [
        (effect.worker_id, effect.message)
        for effect in effects
        if isinstance(effect, SendMessage) and isinstance(effect.message, kind) and effect.worker_id is not None
    ]


def messages(effects: Sequence[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, SendMessage) and not isinstance(effect.message, Ping)]


def test_a_new_row_is_opened_at_a_worker_with_all_of_its_tokens() -> None:
    engine = Engine()
    engine.join()
    assert engine.step(([5, 6, 7], 1)) == [()]
    ((worker_id, opened),) = sent(engine.effects, OpenSession)
    assert (worker_id, opened.session_id, opened.tokens, opened.sampling.temperature) == (ONE, 1, (5, 6, 7), 0.0)


def test_what_has_arrived_is_proposed_and_the_worker_is_told_what_became_of_it() -> None:
    engine = Engine()
    engine.join()
    engine.step(([5, 6, 7], 1))
    engine.draft(1, 2, [8, 9, 10, 11, 12])
    assert engine.step(([5, 6, 7, 8], 1)) == [(9, 10, 11, 12)]
    assert messages(engine.effects) == [Commit(session_id=SessionId(1), position=Position(3), tokens=(8,), newest_node_id=5)]
    assert engine.step(([5, 6, 7, 8, 9, 10, 99], 3)) == [()]  # two accepted, then the engine's own
    assert only(messages(engine.effects), Commit).tokens == (9, 10, 99)
    finished = only(engine.effects, RoundFinished)
    assert (finished.drafted, finished.accepted, finished.committed, finished.proposed) == (4, 2, 3, 2)
    assert len(finished.accepted_estimates) == 2
    assert len(finished.rejected_estimates) == 1
    assert finished.draft_ages_s == pytest.approx((0.01, 0.01))


def test_a_draft_that_the_engine_left_unverified_is_not_held_for_rejected() -> None:
    engine = Engine()
    engine.join()
    engine.step(([5], 1))
    engine.draft(1, 0, [6, 7, 8])
    engine.step(([5, 6], 1))
    engine.step(([5, 6, 7, 8], 2))  # it had room for one draft, and came upon the second by itself
    finished = only(engine.effects, RoundFinished)
    assert (finished.drafted, finished.accepted, finished.rejected_estimates) == (2, 1, ())


def test_a_path_is_proposed_as_far_as_it_is_probable_enough() -> None:
    engine = Engine(max_draft_tokens=8)
    engine.machine._passes.target_times.add(64, 0.01)  # a step takes no longer for a few drafts
    engine.join()
    engine.step(([5], 1))
    engine.draft(1, 0, [6, 7, 8, 9], log_prob=-1.0)  # after the second, less than a tenth
    assert engine.step(([5], 0)) == [()]
    assert engine.step(([5, 6], 1)) == [(7, 8)]


def test_nothing_is_proposed_that_the_engine_has_no_room_to_verify() -> None:
    engine = Engine(max_length=5)
    engine.join()
    engine.step(([5, 6], 1))
    engine.draft(1, 1, [7, 8, 9, 10])
    assert engine.step(([5, 6, 7], 1)) == [(8,)]  # position 4 is the last, and its token is chosen by the row before it
    assert engine.step(([5, 6, 7, 8, 9], 2)) == [()]


def test_a_prompt_that_is_still_computed_is_opened_at_a_worker_and_not_drafted_for() -> None:
    engine = Engine()
    engine.join()
    assert engine.step((range(100), 0)) == [()]
    assert len(sent(engine.effects, OpenSession)) == 1
    engine.draft(1, 99, [7, 8])
    assert engine.step((range(100), 0)) == [()]
    assert messages(engine.effects) == []
    assert engine.step(([*range(100), 7], 1)) == [(8,)]


def test_rows_are_known_wherever_they_stand() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1), ([3, 4], 1))
    engine.draft(1, 1, [10, 11])
    engine.draft(2, 1, [20, 21])
    assert engine.step(([3, 4, 20], 1), ([1, 2, 10], 1)) == [(21,), (11,)]
    assert sent(engine.effects, OpenSession) == []


def test_rows_that_say_the_same_share_a_text_until_they_differ() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1), ([1, 2], 1))
    assert engine.machine.num_texts == 1
    engine.draft(1, 1, [3, 4, 5])
    assert engine.step(([1, 2, 3], 1), ([1, 2, 3], 1)) == [(4, 5), (4, 5)]
    assert len(sent(engine.effects, Commit)) == 1
    assert engine.step(([1, 2, 3, 4, 7], 2), ([1, 2, 3, 6], 1)) == [(), ()]
    ((_, opened),) = sent(engine.effects, OpenSession)
    assert opened.tokens == (1, 2, 3, 6)
    assert engine.machine.num_texts == 2


def test_a_text_that_went_on_unseen_is_known_again_and_its_worker_is_not_blamed() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1), ([1, 3], 1))
    engine.draft(1, 1, [4, 5, 6, 7])
    assert engine.step(([1, 3, 8, 8], 1), ([1, 2, 4, 5, 6], 1)) == [(), (7,)]
    assert sorted(commit.tokens for _, commit in sent(engine.effects, Commit)) == [(4, 5, 6), (8, 8)]
    assert [effect for effect in engine.effects if isinstance(effect, RoundFinished)] == []
    engine.step(([1, 2, 4, 5, 6, *[9] * (MAX_MISSED_TOKENS + 1)], 1))
    assert len(sent(engine.effects, OpenSession)) == 1  # so much later it is another text


def test_a_request_that_begins_as_another_goes_on_does_not_take_its_text() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1))
    engine.step(([1, 2, 3, 4], 1), ([1, 2, 5], 1))
    ((_, opened),) = sent(engine.effects, OpenSession)
    assert opened.tokens == (1, 2, 3, 4)


def test_two_texts_that_come_to_say_the_same_are_one_from_then_on_and_the_other_is_forgotten() -> None:
    engine = Engine()
    engine.join()
    tail = list(range(100, 164))
    engine.step(([1, *tail], 1), ([2, *tail[:-1]], 1))
    engine.step(([2, *tail], 1))  # known by its last 64 tokens and its length: the first is no longer to be told from it
    assert engine.machine.num_texts == 2
    engine.step(([2, *tail, 5], 1))
    engine.passes(ABSENT_S + 0.1)
    assert engine.machine.num_texts == 1


def test_a_text_without_a_row_is_kept_a_while_and_then_closed() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1), ([3, 4], 1))
    engine.step(([3, 4, 5], 1))
    assert not sent(engine.passes(ABSENT_S - 0.02), CloseSession)
    engine.draft(1, 1, [9, 8])
    assert engine.step(([1, 2, 9], 1), ([3, 4, 5, 6], 1)) == [(8,), ()]  # it was preempted, and is back
    engine.step(([3, 4, 5, 6, 7], 1))
    ((_, closed),) = sent(engine.passes(ABSENT_S + 0.1), CloseSession)
    assert closed.session_id == 1
    assert engine.machine.num_texts == 1


def test_while_the_engine_does_nothing_texts_are_kept_for_longer() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1))
    engine.draft(1, 1, [])
    assert not sent(engine.passes(IDLE_S - 1.0), CloseSession)
    assert len(sent(engine.passes(2.0), CloseSession)) == 1
    assert engine.machine.num_texts == 0


def test_of_texts_that_are_forgotten_together_none_gets_the_place_of_another() -> None:
    engine = Engine()
    engine.join(max_sessions=1)
    engine.step(([1, 2], 1), ([3, 4], 1))
    engine.draft(1, 1, [])
    effects = engine.passes(IDLE_S + 1.0)
    assert engine.machine.num_texts == 0
    assert sent(effects, OpenSession) == []


def test_a_text_without_a_row_gives_its_place_to_one_that_has_one() -> None:
    engine = Engine()
    engine.join(max_sessions=1)
    engine.step(([1, 2], 1), ([3, 4], 1))
    assert [opened.tokens for _, opened in sent(engine.effects, OpenSession)] == [(1, 2)]
    engine.step(([3, 4, 5], 1))
    assert messages(engine.effects)[0] == CloseSession(session_id=SessionId(1))
    assert [opened.tokens for _, opened in sent(engine.effects, OpenSession)] == [(3, 4, 5)]


def test_texts_without_a_row_are_not_kept_without_a_bound() -> None:
    engine = Engine()
    for number in range(MAX_ABSENT + 10):
        engine.step(([1, number], 1))
    assert engine.machine.num_texts == MAX_ABSENT + 1


def test_a_lost_workers_texts_go_on_with_another_from_what_is_committed() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1))
    engine.draft(1, 1, [3, 4, 5])
    engine.effects = engine.machine.handle(WorkerLost(worker_id=ONE), now=engine.now)
    assert engine.step(([1, 2, 3], 1)) == [(4, 5)]  # what it sent is still good
    engine.join(TWO)
    ((worker_id, opened),) = sent(engine.effects, OpenSession)
    assert (worker_id, opened.tokens, opened.opening) == (TWO, (1, 2, 3), 2)
    engine.step(([1, 2, 3, 4], 1))
    assert only(engine.effects, RoundFinished).proposed == 0  # by the worker before
    engine.draft(1, 3, [5, 6], worker_id=TWO, opening=2)
    assert engine.step(([1, 2, 3, 4, 5], 1)) == [(6,)]


def test_a_worker_of_no_use_is_rested_and_its_texts_go_to_another() -> None:
    engine = Engine()
    engine.join(ONE)
    tokens = [1]
    engine.step((tokens, 1))
    engine.join(TWO)
    opened: list[tuple[WorkerId, OpenSession]] = []
    while len(tokens) < TRIAL_TOKENS + 150 and not opened:  # a second and a half, its head start in it
        tokens.append(7)
        engine.step((tokens, 1))
        opened = sent(engine.effects, OpenSession)
    assert [(worker_id, len(message.tokens)) for worker_id, message in opened] == [(TWO, len(tokens))]
    assert [worker_id for worker_id, _ in sent(engine.effects, Commit)] == [ONE]  # before it was judged
    assert [worker_id for worker_id, _ in sent(engine.effects, CloseSession)] == [ONE]


def test_a_worker_that_breaks_the_protocol_is_dropped() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1))
    engine.draft(1, 1, [VOCABULARY])
    assert "vocabulary" in only(engine.effects, DropWorker).reason
    assert engine.step(([1, 2, 3], 1)) == [()]


def test_a_worker_that_leaves_a_commit_unanswered_is_dropped() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1))
    assert only(engine.passes(WORKER_UNANSWERED_S + 0.1), DropWorker).worker_id == ONE


def test_drafts_for_a_text_that_is_forgotten_are_ignored() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1))
    engine.draft(1, 1, [])
    engine.passes(IDLE_S + 1.0)
    engine.draft(1, 1, [3])
    assert engine.effects == []


def test_a_token_that_workers_do_not_know_ends_the_drafting_for_its_text_and_for_no_other() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, VOCABULARY], 1), ([3, 4], 1))
    assert [opened.tokens for _, opened in sent(engine.effects, OpenSession)] == [(3, 4)]
    engine.step(([1, VOCABULARY, 2], 1), ([3, 4, VOCABULARY], 1))
    assert messages(engine.effects) == [CloseSession(session_id=SessionId(2))]
    assert engine.step(([1, VOCABULARY, 2, 3], 1), ([3, 4, VOCABULARY, 5], 1)) == [(), ()]
    assert messages(engine.effects) == []


def test_a_text_that_is_too_long_for_the_wire_is_not_drafted_for() -> None:
    engine = Engine(max_length=2 * MAX_SEQUENCE_TOKENS)
    engine.join()
    engine.step(([1] * (MAX_SEQUENCE_TOKENS + 1), 1))
    assert messages(engine.effects) == []


def test_only_workers_that_the_placement_allows_see_a_text() -> None:
    engine = Engine(placement=Placement(labels=("region=eu",)))
    engine.join(ONE, labels=("region=us",))
    engine.step(([1, 2], 1))
    assert messages(engine.effects) == []
    engine.join(TWO, labels=("region=eu",))
    ((worker_id, _),) = sent(engine.effects, OpenSession)
    assert worker_id == TWO


def test_claims_that_prove_false_are_believed_less() -> None:
    engine = Engine()
    engine.join()
    tokens = [1]
    engine.step((tokens, 1))
    first = 1
    for _ in range(40):  # every second token of what the worker is sure of comes true
        engine.draft(1, len(tokens) - 1, [5, 6], first=first, log_prob=-0.01)
        first += 2
        tokens += [5, 7]
        engine.step((tokens, 2))
    engine.draft(1, len(tokens) - 1, [5, 6, 5, 6, 5], first=first, log_prob=-0.01)
    tokens.append(5)
    (chain,) = engine.step((tokens, 1))
    assert 1 <= len(chain) < 4


def test_what_became_of_drafts_is_told() -> None:
    engine = Engine()
    engine.join()
    engine.step(([1, 2], 1))
    engine.step(([1, 2, 3], 1))
    engine.draft(1, 1, [3, 4])
    merged = only(engine.effects, DraftsMerged)
    assert (merged.joined, merged.late) == (2, 1)


def test_an_engine_without_rows_is_answered_too() -> None:
    assert Engine().step() == []


def test_a_text_is_drafted_for_up_to_the_longest_that_the_protocol_can_say() -> None:
    engine = Engine(max_length=4 * MAX_SEQUENCE_TOKENS)
    engine.join()
    engine.step(([1] * (MAX_SEQUENCE_TOKENS - 100), 1))
    ((_, opened),) = sent(engine.effects, OpenSession)
    assert len(opened.tokens) == MAX_SEQUENCE_TOKENS - 100
