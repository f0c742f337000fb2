"""The simulator's cluster with real models: any backend, every message through the codec, some delivered twice.

Messages keep their order within a session on a connection, as the transports promise, but not across sessions. Everything is a
function of the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.events import RequestCancelled
from wanspec.core.protocol.messages import Drafts, Message, OpenSession
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.types import DraftChoices, SamplingParams, ScoreItem, SessionId, TargetChoices, WorkerId
from wanspec.engines.interface import Backend
from wanspec.lab.simulation.cluster import Cluster as SimulatedCluster
from wanspec.lab.simulation.cluster import WorkerSite
from wanspec.lab.simulation.compute import Device
from wanspec.lab.simulation.link import Jitter, Link, LinkProfile, Transport
from wanspec.presets import StepTime
from wanspec.serving.model_runner import decode_plainly
from wanspec.telemetry.records import DraftsReceived, PassStarted, RttSample, Verified
from wanspec.telemetry.trace import Trace
from wanspec.transport.codec import decode_controller_frame, decode_worker_frame, encode_frame

GREEDY = SamplingParams()
TARGET_STEP_S, DRAFT_STEP_S = 0.0234, 0.0075


def plain_decode(target: Backend, prompt: Sequence[int], *, max_tokens: int, sampling: SamplingParams = GREEDY) -> tuple[int, ...]:
    """The oracle."""
    return tuple(decode_plainly(target, prompt, max_tokens=max_tokens, sampling=sampling))


@dataclass(slots=True)
class WanProfile:
    """What the link does to messages, in seconds and probabilities."""

    rtt_s: float = 0.07
    jitter_s: float = 0.0
    """Greatest extra one-way delay."""
    duplicate: float = 0.0
    transport: Transport = Transport.STREAMS


class BackendModel:
    """A backend as the cluster runs it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.passes = 0

    def verify(self, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]:
        self.passes += 1
        return self.backend.verify(items)

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]:
        self.passes += 1
        return self.backend.expand(items)

    def close_session(self, session_id: SessionId) -> None:
        self.backend.close_session(session_id)


class Cluster(SimulatedCluster):
    """One controller, any number of workers, and the time between them."""

    def __init__(
        self, target: Backend, draft: Backend | None, *, seed: int = 0, wan: WanProfile | None = None, target_step_s: float = TARGET_STEP_S
    ) -> None:
        self.trace = Trace()
        super().__init__(
            controller=Controller(
                vocabulary_size=target.info.vocabulary_size,
                end_tokens=target.info.end_tokens,
                draft_context_length=draft.info.context_length if draft is not None else 0,
                draft_name=draft.info.name if draft is not None else "",
            ),
            target=BackendModel(target),
            draft=BackendModel(draft) if draft is not None else None,
            target_device=Device(StepTime(step_s=target_step_s)),
            draft_device=Device(StepTime(step_s=DRAFT_STEP_S)),
            sink=self.trace,
            seed=seed,
        )
        self.wan = wan or WanProfile()
        self._chance = random.Random(seed)
        self.opened: set[tuple[int, int]] = set()
        """(session, worker) of every OpenSession that left."""

    # What a test says.

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Do something at a time."""
        self.queue.schedule(when, action)

    def ask(
        self,
        session_id: int,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        policy: PolicyConfig,
        sampling: SamplingParams = GREEDY,
        placement: Placement = ANYWHERE,
    ) -> None:
        """A request arrives now."""
        self.request(prompt, max_tokens=max_tokens, policy=policy, sampling=sampling, session_id=SessionId(session_id), placement=placement)

    def cancel(self, session_id: int) -> None:
        self.tell_controller(RequestCancelled(session_id=SessionId(session_id)))

    def dial_in(self, backend: Backend, *, max_sessions: int = 8, labels: tuple[str, ...] = ()) -> WorkerSite:
        """A worker joins now, over a link as it now is."""
        info, wan = backend.info, self.wan
        machine = Worker(vocabulary_size=info.vocabulary_size, context_length=info.context_length, max_sessions=max_sessions)
        link = LinkProfile(rtt_s=wan.rtt_s, jitter_s=wan.jitter_s / 2, jitter=Jitter.UNIFORM, transport=wan.transport)
        device = Device(StepTime(step_s=DRAFT_STEP_S))
        return self.join(
            machine, BackendModel(backend), device=device, link=link, max_sessions=max_sessions, labels=labels, model_name=info.name
        )

    def site(self, worker_id: int) -> WorkerSite:
        """A worker, by the order in which they came, from 1."""
        return self.workers[WorkerId(worker_id)]

    @property
    def joined(self) -> int:
        return sum(record.joined for record in self.trace.records if isinstance(record, DraftsReceived))

    @property
    def stale(self) -> int:
        return sum(record.stale for record in self.trace.records if isinstance(record, DraftsReceived))

    @property
    def rounds(self) -> list[Verified]:
        return [record for record in self.trace.records if isinstance(record, Verified)]

    @property
    def rtts(self) -> list[float]:
        return [record.rtt_s for record in self.trace.records if isinstance(record, RttSample)]

    @property
    def controller_draft_passes(self) -> int:
        started = [record for record in self.trace.records if isinstance(record, PassStarted) and record.site == "controller"]
        return sum(record.model == "draft" for record in started)

    # How it works.

    def _send_down(self, worker_id: WorkerId, message: Message, now: float) -> None:
        if isinstance(message, OpenSession):
            self.opened.add((message.session_id, worker_id))
        super()._send_down(worker_id, message, now)

    def _carry(self, link: Link, message: Message, size: int, arrive: Callable[[Any, int], None]) -> None:
        frame = encode_frame([message])
        (copy,) = decode_worker_frame(frame) if isinstance(message, Drafts) else decode_controller_frame(frame)
        for _ in range(2 if self._chance.random() < self.wan.duplicate else 1):
            super()._carry(link, copy, size, arrive)


def stall(site: WorkerSite) -> None:
    """The worker's model never comes back from its pass."""
    site.stalled_until = float("inf")


def model_of(site: WorkerSite) -> BackendModel:
    """A worker's model."""
    assert isinstance(site.model, BackendModel)
    return site.model
