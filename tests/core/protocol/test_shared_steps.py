"""A worker's step that many sessions share."""

from __future__ import annotations

import math

from wanspec.core.protocol.effects import Effect, SendMessage, StartDraft
from wanspec.core.protocol.events import DraftFinished, MessageReceived
from wanspec.core.protocol.messages import Drafts, OpenSession
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.types import DraftChoices, DraftingConfig, SamplingParams, ScoreItem, SessionId

STEP_S, FREE_TOKENS = 0.01, 16
BRANCHES = 8
RANKING = DraftChoices(
    tokens=tuple(range(BRANCHES)), log_probs=tuple(math.log(0.5 * 0.5**rank) for rank in range(BRANCHES)), entropy_nats=1.4
)


def run(machine: Worker, effects: list[Effect], *, steps: int, free_tokens: int = FREE_TOKENS) -> list[list[ScoreItem]]:
    """Answer so many steps, the items of each; a step takes longer for more than `free_tokens`."""
    passes = []
    for number in range(steps):
        (items,) = [effect.items for effect in effects if isinstance(effect, StartDraft)]
        passes.append(list(items))
        choices = tuple(tuple(RANKING for _ in item.next_positions) for item in items)
        duration_s = STEP_S * max(1.0, sum(item.tokens for item in items) / free_tokens)
        effects = machine.handle(DraftFinished(choices=choices, duration_s=duration_s), now=float(number))
    return passes


def opened(machine: Worker, sessions: int) -> list[Effect]:
    effects: list[Effect] = []
    for number in range(1, sessions + 1):
        drafting = DraftingConfig(branch=BRANCHES, leaves=32, path_prob_min=0.0001)
        message = OpenSession(session_id=SessionId(number), opening=1, tokens=(1, 2), sampling=SamplingParams(), drafting=drafting)
        effects += machine.handle(MessageReceived(message=message), now=0.0)
    return effects


def worker() -> Worker:
    return Worker(vocabulary_size=100, context_length=64, max_sessions=16)


def test_alone_a_session_has_the_whole_width_of_a_step() -> None:
    machine = worker()
    *_, widest = run(machine, opened(machine, 1), steps=8, free_tokens=32)
    assert len(widest[0].next_positions) == 32


def test_many_sessions_share_a_step_of_about_the_size_that_costs_no_more() -> None:
    machine = worker()
    *_, late = run(machine, opened(machine, 8), steps=15)
    assert sum(item.tokens for item in late) < 8 * 32 / 3  # which were to be had


def test_what_had_to_give_way_is_expanded_later() -> None:
    machine = worker()
    effects = opened(machine, 2)
    sizes = [sum(len(item.next_positions) for item in items) for items in run(machine, effects, steps=15)]
    assert all(size > 0 for size in sizes)  # there is always something left, and none is lost
    assert sum(sizes) > 2 * (1 + BRANCHES)


def test_every_session_of_a_shared_step_is_offered_drafts() -> None:
    machine = worker()
    effects = opened(machine, 4)
    offered: set[int] = set()
    for number in range(12):
        offered |= {
            e.message.session_id for e in effects if isinstance(e, SendMessage) and isinstance(e.message, Drafts) and e.message.tokens
        }
        (items,) = [effect.items for effect in effects if isinstance(effect, StartDraft)]
        choices = tuple(tuple(RANKING for _ in item.next_positions) for item in items)
        effects = machine.handle(DraftFinished(choices=choices, duration_s=STEP_S), now=float(number))
    assert offered == {1, 2, 3, 4}
