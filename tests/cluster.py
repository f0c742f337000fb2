"""A controller and its workers joined over a fake WAN in virtual time: real machines, any backend, every fault a line.

Messages keep their order within a session on a connection, as the transports promise, but not across sessions; they may be delayed,
delivered twice and lost with their connection. Everything is a function of the seed. Messages cross as bytes, through the codec.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from wanspec.backends.interface import Backend
from wanspec.policy.registry import PolicyConfig
from wanspec.protocol.controller import Controller
from wanspec.protocol.effects import (
    DraftsMerged,
    DropWorker,
    Effect,
    EmitTokens,
    FinishRequest,
    ReleaseSession,
    RoundFinished,
    RttMeasured,
    SendMessage,
    StartDraft,
    StartVerify,
)
from wanspec.protocol.events import (
    ControllerEvent,
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    MessageReceived,
    RequestArrived,
    RequestCancelled,
    VerifyFinished,
    WorkerEvent,
    WorkerJoined,
    WorkerLost,
)
from wanspec.protocol.messages import Drafts, Message
from wanspec.protocol.worker import Worker
from wanspec.runtime.model_runner import choose_targets, decode_plainly, rank_drafts
from wanspec.speculation.types import SamplingParams, ScoreItem, SessionId, WorkerId
from wanspec.transport.codec import decode_controller_frame, decode_worker_frame, encode_frame

GREEDY = SamplingParams()


def plain_decode(target: Backend, prompt: Sequence[int], *, max_tokens: int, sampling: SamplingParams = GREEDY) -> tuple[int, ...]:
    """The oracle."""
    return tuple(decode_plainly(target, prompt, max_tokens=max_tokens, sampling=sampling))


@dataclass(slots=True)
class WanProfile:
    """What the link does to messages, in seconds and probabilities."""

    rtt_s: float = 0.07
    jitter_s: float = 0.0
    duplicate: float = 0.0


@dataclass(slots=True)
class WorkerSite:
    """A worker, its machine and its model."""

    machine: Worker
    backend: Backend
    is_alive: bool = True
    is_stalled: bool = False
    draft_passes: int = 0
    mangle: Callable[[Drafts], Drafts] = lambda drafts: drafts

    def stall(self) -> None:
        """The model never comes back from its pass."""
        self.is_stalled = True


@dataclass(slots=True)
class Result:
    """What a request came to."""

    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    arrived_at: float = 0.0
    token_times: list[float] = field(default_factory=list)


class Cluster:
    """One controller, any number of workers, and the time between them."""

    def __init__(
        self,
        target: Backend,
        draft: Backend,
        *,
        seed: int = 0,
        wan: WanProfile | None = None,
        target_step_s: float = 0.0234,
        draft_step_s: float = 0.0075,
    ) -> None:
        self.random = random.Random(seed)
        self.wan = wan or WanProfile()
        self.now = 0.0
        self.controller = Controller(vocabulary_size=target.info.vocabulary_size, end_token=target.info.end_token)
        self.target, self.draft = target, draft
        self.target_step_s, self.draft_step_s = target_step_s, draft_step_s
        self.workers: dict[WorkerId, WorkerSite] = {}
        self.results: dict[int, Result] = defaultdict(Result)
        self.controller_draft_passes = self.controller_target_passes = 0
        self.joined = self.stale = 0
        self.rounds: list[RoundFinished] = []
        self.rtts: list[float] = []
        self.dropped: dict[WorkerId, str] = {}
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self._busy_until: dict[tuple[Any, ...], float] = defaultdict(float)

    # What a test says.

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Do something at a time."""
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, action))

    def request(
        self, session_id: int, prompt: Sequence[int], *, max_tokens: int, policy: PolicyConfig, sampling: SamplingParams = GREEDY
    ) -> None:
        """A request arrives now."""
        self.results[session_id].arrived_at = self.now
        self.tell_controller(
            RequestArrived(
                session_id=SessionId(session_id), prompt_tokens=tuple(prompt), sampling=sampling, max_tokens=max_tokens, policy=policy
            )
        )

    def cancel(self, session_id: int) -> None:
        self.tell_controller(RequestCancelled(session_id=SessionId(session_id)))

    def join(self, worker_id: int, backend: Backend, *, max_sessions: int = 8) -> WorkerSite:
        """A worker dials in now."""
        machine = Worker(
            vocabulary_size=backend.info.vocabulary_size, context_length=backend.info.context_length, max_sessions=max_sessions
        )
        site = self.workers[WorkerId(worker_id)] = WorkerSite(machine, backend)
        self.tell_controller(WorkerJoined(worker_id=WorkerId(worker_id), name=f"worker-{worker_id}", max_sessions=max_sessions))
        return site

    def crash(self, worker_id: int, *, noticed_after_s: float = 0.05) -> None:
        """A worker dies now; the controller notices later."""
        self.workers[WorkerId(worker_id)].is_alive = False
        self.at(self.now + noticed_after_s, lambda: self.tell_controller(WorkerLost(worker_id=WorkerId(worker_id))))

    def run(self, *, until: float = 1e9) -> None:
        """Let time pass until nothing is left to happen."""
        while True:
            deadline = self.controller.next_deadline()
            next_at = self._queue[0][0] if self._queue else None
            if deadline is not None and (next_at is None or deadline < next_at):
                if deadline > until:
                    return
                self.now = max(self.now, deadline)
                self.tell_controller(DeadlineReached())
            elif next_at is not None and next_at <= until:
                when, _, action = heapq.heappop(self._queue)
                self.now = max(self.now, when)
                action()
            else:
                return

    # How it works.

    def tell_controller(self, event: ControllerEvent) -> None:
        for effect in self.controller.handle(event, now=self.now):
            self._do(effect)

    def _tell_worker(self, worker_id: WorkerId, event: WorkerEvent) -> None:
        site = self.workers[worker_id]
        if not site.is_alive:
            return
        for effect in site.machine.handle(event, now=self.now):
            match effect:
                case StartDraft(items=items):
                    self._run_worker_pass(worker_id, site, items)
                case SendMessage(message=message):
                    assert isinstance(message, Drafts)
                    self._to_controller(worker_id, site, site.mangle(message))
                case ReleaseSession(session_id=session_id):
                    self.at(self.now + self.draft_step_s, partial(site.backend.close_session, session_id))
                case _:
                    raise AssertionError(effect)

    def _do(self, effect: Effect) -> None:  # one case per effect
        match effect:
            case StartVerify(items=items):
                self.controller_target_passes += 1
                choices = choose_targets(self.target, items)
                self.at(
                    self.now + self.target_step_s,
                    lambda: self.tell_controller(VerifyFinished(choices=choices, duration_s=self.target_step_s)),
                )
            case StartDraft(items=items):
                self.controller_draft_passes += 1
                ranked = rank_drafts(self.draft, items)
                self.at(
                    self.now + self.draft_step_s,
                    lambda: self.tell_controller(DraftFinished(choices=ranked, duration_s=self.draft_step_s)),
                )
            case SendMessage(worker_id=worker_id, message=message):
                assert worker_id is not None
                (copy,) = decode_controller_frame(encode_frame([message]))
                self._deliver(("down", worker_id), copy, partial(self._tell_worker, worker_id, MessageReceived(message=copy)))
            case EmitTokens(session_id=session_id, tokens=tokens):
                result = self.results[session_id]
                result.tokens += tokens
                result.token_times += [self.now] * len(tokens)
            case FinishRequest(session_id=session_id, reason=reason):
                assert self.results[session_id].reason is None
                self.results[session_id].reason = reason.value
            case ReleaseSession(session_id=session_id):
                self.at(self.now + self.target_step_s, lambda: self._release(session_id))
            case DropWorker(worker_id=worker_id, reason=reason):
                self.dropped[worker_id] = reason
                self.workers[worker_id].is_alive = False
            case DraftsMerged(joined=joined, stale=stale):
                self.joined += joined
                self.stale += stale
            case RttMeasured(rtt_s=rtt_s):
                self.rtts.append(rtt_s)
            case RoundFinished():
                self.rounds.append(effect)

    def _release(self, session_id: SessionId) -> None:
        self.target.close_session(session_id)
        self.draft.close_session(session_id)

    def _run_worker_pass(self, worker_id: WorkerId, site: WorkerSite, items: tuple[ScoreItem, ...]) -> None:
        site.draft_passes += 1
        ranked = rank_drafts(site.backend, items)
        if not site.is_stalled:
            event = DraftFinished(choices=ranked, duration_s=self.draft_step_s)
            self.at(self.now + self.draft_step_s, lambda: self._tell_worker(worker_id, event))

    def _to_controller(self, worker_id: WorkerId, site: WorkerSite, drafts: Drafts) -> None:
        (copy,) = decode_worker_frame(encode_frame([drafts]))
        assert isinstance(copy, Drafts)

        def arrive() -> None:
            if site.is_alive:
                self.tell_controller(DraftsReceived(worker_id=worker_id, drafts=copy))

        self._deliver(("up", worker_id), copy, arrive)

    def _deliver(self, direction: tuple[Any, ...], message: Message, arrive: Callable[[], None]) -> None:
        channel = (*direction, getattr(message, "session_id", None))
        for _ in range(2 if self.random.random() < self.wan.duplicate else 1):
            due = self.now + self.wan.rtt_s / 2 + self.random.random() * self.wan.jitter_s
            due = max(due, self._busy_until[channel])
            self._busy_until[channel] = due
            self.at(due, arrive)
