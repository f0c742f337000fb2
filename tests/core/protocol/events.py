"""Events as a test would say them, and what is found in the effects that come of them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TypeVar

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import Effect, SendMessage
from wanspec.core.protocol.events import (
    ControllerEvent,
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    RequestArrived,
    VerifyFinished,
    WorkerJoined,
)
from wanspec.core.protocol.messages import Drafts, OpenSession
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.speculation.types import DraftChoices, NodeId, Position, SamplingParams, SessionId, TargetChoices, WorkerId

T = TypeVar("T")


class PromptController(Controller):
    """A controller whose driver comes back at once when it is asked to."""

    def handle(self, event: ControllerEvent, *, now: float) -> list[Effect]:
        effects = super().handle(event, now=now)
        return [*effects, *super().handle(DeadlineReached(), now=now)] if self._learn_at is not None else effects


class Tokens(tuple[int, ...]):
    """A row's tokens."""

    __slots__ = ()

    def slice(self, start: int, stop: int) -> tuple[int, ...]:
        return tuple(self[start:stop])

    def packed(self, start: int, stop: int) -> bytes:
        return array("i", self[start:stop]).tobytes()


def arrival(
    session_id: int = 1,
    *,
    policy: str | PolicyConfig = "colocated",
    prompt: tuple[int, ...] = (1, 2, 3),
    max_tokens: int = 10,
    placement: Placement = ANYWHERE,
    reuse_key: str | None = None,
) -> RequestArrived:
    return RequestArrived(
        session_id=SessionId(session_id),
        prompt_tokens=prompt,
        sampling=SamplingParams(),
        max_tokens=max_tokens,
        policy=PolicyConfig(name=policy) if isinstance(policy, str) else policy,
        placement=placement,
        reuse_key=reuse_key,
    )


def joined(worker_id: int, *, max_sessions: int = 4, labels: tuple[str, ...] = (), identity: str = "") -> WorkerJoined:
    name = f"worker-{worker_id}"
    return WorkerJoined(worker_id=WorkerId(worker_id), name=name, max_sessions=max_sessions, labels=labels, identity=identity)


def verified(*tokens: int, entropy_nats: float = 0.1, duration_s: float = 0.02) -> VerifyFinished:
    """A pass over one session, which has accepted all of these tokens but the last, its own."""
    return VerifyFinished(choices=(TargetChoices(tokens=tokens, entropy_nats=entropy_nats),), duration_s=duration_s)


def drafted(*tokens: int, entropy_nats: float = 0.0) -> DraftFinished:
    """A pass over one session, which ranks each of these tokens first in its row."""
    rows = tuple(DraftChoices(tokens=(token, 90), log_probs=(-0.1, -3.0), entropy_nats=entropy_nats) for token in tokens)
    return DraftFinished(choices=(rows,), duration_s=0.007)


def drafts(
    base: int,
    tokens: Sequence[int] = (),
    *,
    session_id: int = 1,
    opening: int = 1,
    first: int = 1,
    parents: Sequence[int] | None = None,
    held_s: float = 0.0,
    log_prob: float = -0.1,
) -> Drafts:
    """Below the committed token at position `base`, a chain unless their parents are named; without tokens an acknowledgement."""
    chain = [0, *range(first, first + len(tokens) - 1)][: len(tokens)]
    return Drafts(
        session_id=SessionId(session_id),
        opening=opening,
        base_position=Position(base),
        held_s=held_s,
        step_s=0.007,
        first_node_id=NodeId(first),
        parent_ids=tuple(chain if parents is None else parents),
        tokens=tuple(tokens),
        log_probs=(log_prob,) * len(tokens),
    )


def controller(*events: ControllerEvent) -> Controller:
    """One to which these have happened, all at once."""
    machine = PromptController(vocabulary_size=100, end_tokens=(0,))
    for event in events:
        machine.handle(event, now=0.0)
    return machine


def received(message: Drafts, *, worker_id: int = 1) -> DraftsReceived:
    return DraftsReceived(worker_id=WorkerId(worker_id), drafts=message)


def only(found: Sequence[object], kind: type[T]) -> T:
    """The one thing of this kind."""
    (one,) = [each for each in found if isinstance(each, kind)]
    return one


def opened(effects: Sequence[object]) -> list[int]:
    """The workers at which sessions are opened."""
    return [effect.worker_id or 0 for effect in effects if isinstance(effect, SendMessage) and isinstance(effect.message, OpenSession)]
