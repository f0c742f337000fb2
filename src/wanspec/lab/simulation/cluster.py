"""A controller and its workers in virtual time: the production machines, and everything around them modelled.

What the real driver does with sockets, threads and models happens here on an event queue. The machines are the same, what is recorded is
the same (`telemetry.records`), and the figures are computed by the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, assert_never

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.controller import Controller
from wanspec.core.protocol.effects import (
    DraftsMerged,
    DraftsProposed,
    DropWorker,
    Effect,
    EmitTokens,
    FinishReason,
    FinishRequest,
    LeaveController,
    ReleaseSession,
    RoundFinished,
    RttMeasured,
    SendMessage,
    StartDraft,
    StartVerify,
)
from wanspec.core.protocol.events import (
    ControllerEvent,
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    MessageReceived,
    PongReceived,
    RequestArrived,
    VerifyFinished,
    WorkerEvent,
    WorkerJoined,
    WorkerLost,
)
from wanspec.core.protocol.messages import ControllerMessage, Drafts, Message, Ping, Pong
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.protocol.worker import Worker
from wanspec.core.speculation.types import DraftChoices, SamplingParams, ScoreItem, SessionId, TargetChoices, WorkerId
from wanspec.errors import RemoteProtocolError
from wanspec.lab.simulation.compute import Device
from wanspec.lab.simulation.events import EventQueue
from wanspec.lab.simulation.link import Link, LinkProfile, Transport, message_bytes
from wanspec.telemetry.records import LinkBytes, Model
from wanspec.telemetry.trace import TraceSink
from wanspec.telemetry.tracer import Tracer

LOSS_NOTICED_S = 0.05
"""How long after a worker's end its connection is seen to be gone: a reset or a FIN, not a timeout."""
NOBODY = WorkerId(0)
"""At a worker's site, its controller."""


class PassModel(Protocol):
    """What runs passes, a model of a model or a real one: the part of `engines.interface.Backend` that a cluster calls."""

    def verify(self, items: Sequence[ScoreItem]) -> tuple[TargetChoices, ...]: ...

    def expand(self, items: Sequence[ScoreItem]) -> tuple[tuple[DraftChoices, ...], ...]: ...

    def close_session(self, session_id: SessionId) -> None: ...


@dataclass(slots=True, eq=False)
class WorkerSite:
    """A worker: its machine, its model, its device and the link to the controller."""

    worker_id: WorkerId
    name: str
    """The same for each of its connections."""
    machine: Worker
    model: PassModel
    device: Device
    down: Link
    up: Link
    tracer: Tracer
    is_alive: bool = True
    stalled_until: float = 0.0
    looks_at: float = math.inf
    """The next of its deadlines that is on the queue."""
    mangle: Callable[[Drafts], Drafts] | None = None
    """What a worker that lies makes of its drafts."""


@dataclass(slots=True)
class Request:
    """What has become of a request."""

    arrived_at: float
    tokens: list[int] = field(default_factory=list)
    """Generated so far."""
    token_times: list[float] = field(default_factory=list)
    reason: FinishReason | None = None


class Cluster:
    """One controller, any number of workers, and the time between them."""

    def __init__(
        self,
        *,
        controller: Controller,
        target: PassModel,
        draft: PassModel | None,
        target_device: Device,
        draft_device: Device,
        sink: TraceSink,
        seed: int,
    ) -> None:
        self.queue = EventQueue()
        self.controller = controller
        self.workers: dict[WorkerId, WorkerSite] = {}
        self.requests: dict[SessionId, Request] = {}
        self.bytes_in_flight = 0
        self.dropped: dict[WorkerId, str] = {}
        """Why the controller dropped workers."""
        self.on_finish: Callable[[SessionId], None] = lambda _: None
        self.on_drop: Callable[[WorkerSite, DropWorker], object] = lambda _site, _drop: None
        self.on_leave: Callable[[WorkerSite], object] = lambda _site: None
        """A worker that hears nothing any more has ended its connection."""
        self._target, self._draft = target, draft
        self._target_device, self._draft_device = target_device, draft_device
        self._sink = sink
        self._tracer = Tracer(sink, "controller")
        self._seed = seed
        self._deadline = math.inf
        self._heartbeats = 0
        """On the queue: pings and pongs on their way, deadlines of workers, and dials, without which nothing else would happen."""

    # What a scenario says.

    def request(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        policy: PolicyConfig,
        sampling: SamplingParams,
        session_id: SessionId,
        placement: Placement = ANYWHERE,
    ) -> None:
        """A request arrives now; session ids count up."""
        self.requests[session_id] = Request(arrived_at=self.queue.now)
        event = RequestArrived(
            session_id=session_id,
            prompt_tokens=tuple(prompt),
            sampling=sampling,
            max_tokens=max_tokens,
            policy=policy,
            placement=placement,
        )
        self._tracer.request_arrived(event, now=self.queue.now)
        self.tell_controller(event)

    def join(
        self,
        machine: Worker,
        model: PassModel,
        *,
        device: Device,
        link: LinkProfile,
        max_sessions: int,
        labels: tuple[str, ...] = (),
        model_name: str = "",
        before: WorkerSite | None = None,
    ) -> WorkerSite:
        """A worker dials in now; what it sends may go by datagram, what it is told never does. `before`: its last connection."""
        worker_id = WorkerId(len(self.workers) + 1)
        name = before.name if before else f"worker-{worker_id}"
        down = replace(link, transport=Transport.TCP) if link.transport is Transport.DATAGRAM else link
        site = self.workers[worker_id] = WorkerSite(
            worker_id=worker_id,
            name=name,
            machine=machine,
            model=model,
            device=device,
            down=Link(down, seed=hash((self._seed, worker_id, 0)), troubles=before.down.troubles if before else None),
            up=Link(link, seed=hash((self._seed, worker_id, 1)), troubles=before.up.troubles if before else None),
            tracer=Tracer(self._sink, "worker"),
        )
        joined = WorkerJoined(
            worker_id=worker_id, name=name, max_sessions=max_sessions, labels=labels, identity=name, model_name=model_name
        )
        self.tell_controller(joined)
        return site

    def crash(self, site: WorkerSite) -> None:
        """A worker dies now; the controller sees it a little later."""
        site.is_alive = False
        self.queue.schedule(self.queue.now + LOSS_NOTICED_S, self.tell_controller, WorkerLost(worker_id=site.worker_id))

    def later(self, when: float, action: Callable[[], object]) -> None:
        """Let something happen for which alone no time passes."""
        self._heartbeats += 1
        self.queue.schedule(when, self._happens, action)

    def run(self, *, until: float) -> None:
        """Let time pass until nothing is left to happen but heartbeats, or until then (a finite time)."""
        queue = self.queue
        while self.pending or self.controller.num_sessions:
            deadline, next_at = self._deadline, queue.next_at
            if deadline < next_at:
                if deadline > until:
                    return
                queue.now = max(queue.now, deadline)
                self.tell_controller(DeadlineReached())
            elif next_at <= until:  # never so with an empty queue
                queue.step()
            else:
                return

    def record_bytes(self) -> None:
        """Put down what the links have carried in all."""
        to_worker_bytes, to_controller_bytes = (
            sum(link.carried_bytes for link in links)
            for links in ([site.down for site in self.workers.values()], [site.up for site in self.workers.values()])
        )
        carried = LinkBytes(t=self.queue.now, site="link", to_worker_bytes=to_worker_bytes, to_controller_bytes=to_controller_bytes)
        self._sink.record(carried)

    @property
    def pending(self) -> int:
        """What is on the queue beside heartbeats."""
        return len(self.queue) - self._heartbeats

    def _happens(self, action: Callable[[], object]) -> None:
        self._heartbeats -= 1
        action()

    # The controller's side.

    def tell_controller(self, event: ControllerEvent) -> None:
        """Hand an event to the controller machine, and do what it asks."""
        now = self.queue.now
        for effect in self.controller.handle(event, now=now):
            self._do(effect, now)
        deadline = self.controller.next_deadline()
        self._deadline = math.inf if deadline is None else deadline

    def _do(self, effect: Effect, now: float) -> None:
        self._tracer.effect(effect, now=now)
        match effect:
            case DraftsMerged() | RttMeasured() | RoundFinished():
                pass  # the most frequent first
            case StartVerify(items=items):
                duration_s = self._target_device.pass_s(_tokens(items), sessions=len(items))
                self._tracer.pass_started("target", items, now=now)
                verified = VerifyFinished(choices=self._target.verify(items), duration_s=duration_s)
                self.queue.schedule(now + duration_s, self._pass_finished, "target", items, verified)
            case StartDraft(items=items):
                assert self._draft is not None, "the machine knows that there is none"
                duration_s = self._draft_device.pass_s(_tokens(items), sessions=len(items))
                self._tracer.pass_started("draft", items, now=now)
                drafted = DraftFinished(choices=self._draft.expand(items), duration_s=duration_s)
                self.queue.schedule(now + duration_s, self._pass_finished, "draft", items, drafted)
            case SendMessage(worker_id=worker_id, message=message) if worker_id is not None:
                self._send_down(worker_id, message, now)
            case EmitTokens(session_id=session_id, tokens=tokens):
                self.requests[session_id].tokens += tokens
                self.requests[session_id].token_times += [now] * len(tokens)
            case FinishRequest(session_id=session_id, reason=reason):
                self.requests[session_id].reason = reason
                self.on_finish(session_id)
            case ReleaseSession(session_id=session_id):
                self._target.close_session(session_id)
                if self._draft is not None:
                    self._draft.close_session(session_id)
            case DropWorker(worker_id=worker_id, reason=reason):
                self.dropped[worker_id] = reason
                self.workers[worker_id].is_alive = False
                self.on_drop(self.workers[worker_id], effect)
            case SendMessage() | LeaveController() | DraftsProposed():
                pass
            case _:
                assert_never(effect)

    def _pass_finished(self, model: Model, items: tuple[ScoreItem, ...], event: VerifyFinished | DraftFinished) -> None:
        self._tracer.pass_finished(model, items, event.duration_s, now=self.queue.now)
        self.tell_controller(event)

    def _send_down(self, worker_id: WorkerId, message: Message, now: float) -> None:
        site, size = self.workers[worker_id], message_bytes(message)
        if isinstance(message, Ping):
            self._beat(site.down, message, partial(self._pinged, site))
            return
        self._tracer.message_sent(worker_id, message, size, now=now)
        self._carry(site.down, message, size, partial(self._arrive_down, site))

    def _beat(self, link: Link, message: Ping | Pong, arrive: Callable[[int], None]) -> None:
        """Send a heartbeat on its way."""
        arrival = link.arrival(message_bytes(message), now=self.queue.now)
        if arrival is not None:
            self._heartbeats += 1
            self.queue.schedule(arrival, arrive, message.number)

    def _pinged(self, site: WorkerSite, number: int) -> None:
        self._heartbeats -= 1
        self._tell_worker(site, MessageReceived(message=Ping(number=number)))

    def _ponged(self, site: WorkerSite, number: int) -> None:
        self._heartbeats -= 1
        if site.is_alive:
            self.tell_controller(PongReceived(worker_id=site.worker_id, number=number))

    def _carry(self, link: Link, message: Message, size: int, arrive: Callable[[Any, int], None]) -> None:
        """Send a message on its way."""
        arrival = link.arrival(size, now=self.queue.now, session=getattr(message, "session_id", None))
        if arrival is not None:
            self.bytes_in_flight += size
            self.queue.schedule(arrival, arrive, message, size)

    def _arrive_down(self, site: WorkerSite, message: ControllerMessage, size: int) -> None:
        self.bytes_in_flight -= size
        if site.is_alive:
            site.tracer.message_received(NOBODY, message, size, now=self.queue.now)
            self._tell_worker(site, MessageReceived(message=message))

    # The workers' side.

    def _tell_worker(self, site: WorkerSite, event: WorkerEvent) -> None:
        if not site.is_alive:
            return
        now = self.queue.now
        try:
            effects = site.machine.handle(event, now=now)
        except RemoteProtocolError as error:
            raise AssertionError(f"the controller broke the protocol: {error}") from error
        for effect in effects:
            match effect:
                case StartDraft(items=items):
                    duration_s = site.device.pass_s(_tokens(items), sessions=len(items))
                    site.tracer.pass_started("draft", items, now=now)
                    drafted = DraftFinished(choices=site.model.expand(items), duration_s=duration_s)
                    self.queue.schedule(now + duration_s, self._worker_pass_finished, site, items, drafted)
                case SendMessage(message=message) if isinstance(message, Drafts):
                    self._send_up(site, message, now)
                case SendMessage(message=message) if isinstance(message, Pong):
                    self._beat(site.up, message, partial(self._ponged, site))
                case LeaveController():
                    self.crash(site)
                    self.on_leave(site)
                case ReleaseSession(session_id=session_id):
                    site.model.close_session(session_id)
                case _:
                    raise AssertionError(effect)
        self._watch(site)

    def _watch(self, site: WorkerSite) -> None:
        """Put the worker's next deadline on the queue, if no earlier one is there; when it comes, it may have been put off."""
        deadline = site.machine.next_deadline()
        if deadline is not None and site.is_alive and deadline < site.looks_at:
            site.looks_at = deadline
            self._heartbeats += 1
            self.queue.schedule(deadline, self._deadline_of, site)

    def _deadline_of(self, site: WorkerSite) -> None:
        self._heartbeats -= 1
        if self.queue.now >= site.looks_at:
            site.looks_at = math.inf
        if self.queue.now >= site.stalled_until:  # a stopped process does nothing, and looks again when it hears something
            self._tell_worker(site, DeadlineReached())

    def _worker_pass_finished(self, site: WorkerSite, items: tuple[ScoreItem, ...], event: DraftFinished) -> None:
        now = self.queue.now
        if site.stalled_until == math.inf:
            return
        if now < site.stalled_until:
            self.queue.schedule(site.stalled_until, self._worker_pass_finished, site, items, event)
        elif site.is_alive:
            site.tracer.pass_finished("draft", items, event.duration_s, now=now)
            self._tell_worker(site, event)

    def _send_up(self, site: WorkerSite, drafts: Drafts, now: float) -> None:
        if site.mangle is not None:
            drafts = site.mangle(drafts)
        size = message_bytes(drafts)
        site.tracer.message_sent(NOBODY, drafts, size, now=now)
        self._carry(site.up, drafts, size, partial(self._arrive_up, site))

    def _arrive_up(self, site: WorkerSite, drafts: Drafts, size: int) -> None:
        self.bytes_in_flight -= size
        if site.is_alive:
            self._tracer.message_received(site.worker_id, drafts, size, now=self.queue.now)
            self.tell_controller(DraftsReceived(worker_id=site.worker_id, drafts=drafts))


def _tokens(items: Sequence[ScoreItem]) -> int:
    return sum(item.tokens for item in items)
