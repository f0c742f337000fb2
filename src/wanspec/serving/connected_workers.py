"""The connected workers: their messages become events for the machine, its messages go to them, and each one's use is counted.

A worker is *connected* while its connection lasts, and *accountable* until the machine has handled its last message, for which it can be
blamed after it has hung up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from wanspec.core.protocol.effects import DropWorker, LossCause, RoundFinished
from wanspec.core.protocol.events import DraftsReceived, LinkEvent, PongReceived, WorkerJoined, WorkerLost
from wanspec.core.protocol.messages import CloseSession, Drafts, Drain, Hello, Message, OpenSession, Ping, Pong
from wanspec.core.protocol.rtt import RttEstimate
from wanspec.core.speculation.types import SessionId, WorkerId
from wanspec.errors import RemoteProtocolError, TransportError, WanspecError
from wanspec.telemetry.tracer import Tracer
from wanspec.transport.codec import encoded_size
from wanspec.transport.interface import Connection, Listener, RefusalCause, SlowPeerError, Traffic

_log = logging.getLogger(__name__)

MAX_DEPARTURES = 10
"""Departures remembered, for an operator who looks later."""
MAX_PENDING_EVENTS = 256
"""While more events than this wait for the machine no message is taken, and a flood fills the wire's own bounded buffer."""
CATCH_UP_S = 0.001
"""Between two looks at whether the machine has caught up; 256 events take it longer than this."""


@dataclass(slots=True, eq=False, kw_only=True)
class ConnectedWorker:
    """A worker as an operator and its requests see it."""

    worker_id: WorkerId
    """The machine's id of this connection."""
    name: str
    """The name that it gives itself; others may have the same."""
    unique_name: str
    """Its name, extended where another connected worker has the same."""
    connection: Connection
    """The wire to it."""
    rtt: RttEstimate = field(default_factory=RttEstimate)
    """Round trips of acknowledgements; `min_s` is infinite until the first measurement. The machine has its own."""
    sessions: set[SessionId] = field(default_factory=set)
    """Sessions open at this worker."""
    committed_tokens: int = 0
    """Tokens committed by its sessions."""
    proposed_tokens: int = 0
    """Committed tokens that it had proposed in time."""
    loss_cause: LossCause | None = None
    """Why it is leaving; None: not known, or it is not."""
    is_at_fault: bool = False
    """Whether the listener refuses it for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A worker that has gone."""

    at: float
    """When, by the event loop's clock."""
    name: str
    """The name that it gave itself."""
    cause: LossCause
    """Why it left."""


class LinkEvents(Protocol):
    """A queue of events that leads to a machine."""

    def put_nowait(self, item: LinkEvent, /) -> None: ...

    def qsize(self) -> int: ...


class ConnectedWorkers:
    """The workers of one engine, from all of its listeners."""

    def __init__(self, events: LinkEvents, tracer: Tracer, spawn: Callable[[Coroutine[object, None, None]], object]) -> None:
        """`events` lead to the machine; `spawn` runs a task."""
        self._events, self._tracer, self._spawn = events, tracer, spawn
        self._connected: dict[WorkerId, ConnectedWorker] = {}
        self._accountable: dict[WorkerId, ConnectedWorker] = {}
        self._ids = count(1)
        self._changed = asyncio.Condition()
        self._gone = Traffic(0, 0)
        """Traffic of connections that have ended."""
        self.losses: Counter[LossCause] = Counter()
        """Workers that have left, by cause."""
        self.quarantines: Counter[LossCause] = Counter()
        """Workers that were then refused for a while, by cause."""
        self._listeners: list[Listener] = []
        self.departures: deque[Departure] = deque(maxlen=MAX_DEPARTURES)
        """The latest departures, oldest first."""

    @property
    def connected(self) -> list[ConnectedWorker]:
        """Connected workers, oldest first."""
        return list(self._connected.values())

    @property
    def traffic(self) -> Traffic:
        """Traffic of all connections, including those that have ended."""
        carried = [self._gone, *[worker.connection.traffic for worker in self._accountable.values()]]
        return Traffic(sum(traffic.sent_bytes for traffic in carried), sum(traffic.received_bytes for traffic in carried))

    @property
    def refusals(self) -> Counter[RefusalCause]:
        """Workers that were not let in, by cause."""
        return sum((listener.refusals for listener in self._listeners), Counter())

    def get(self, worker_id: WorkerId) -> ConnectedWorker | None:
        """The worker, if it is connected."""
        return self._connected.get(worker_id)

    async def wait_for(self, number: int) -> None:
        """Return when at least `number` are connected."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._connected) >= number)

    async def accept(self, listener: Listener) -> None:
        """Serve the workers that this listener lets in, until it closes."""
        self._listeners.append(listener)
        async for hello, connection in listener.connections():
            self._spawn(self._serve(WorkerId(next(self._ids)), hello, connection))

    async def drain(self, reason: str) -> None:
        """Tell every worker to end."""
        leaving = self.connected
        for worker in leaving:
            worker.loss_cause = worker.loss_cause or LossCause.CLOSED
            with contextlib.suppress(TransportError):
                worker.connection.send([Drain(reason=reason)])
        await asyncio.gather(*[worker.connection.close(reason) for worker in leaving])  # a slow one holds up no other

    def send(self, worker_id: WorkerId, messages: Sequence[Message], *, now: float) -> None:
        """Queue messages for a worker, if it is connected."""
        worker = self._connected.get(worker_id)
        if worker is None:
            return  # it is gone, and the machine will hear so
        for message in messages:
            match message:
                case OpenSession(session_id=session_id):
                    worker.sessions.add(session_id)
                case CloseSession(session_id=session_id):
                    worker.sessions.discard(session_id)
            if self._tracer.is_kept and not isinstance(message, Ping):  # pings never end, and say nothing
                self._tracer.message_sent(worker_id, message, encoded_size(message), now=now)
        with contextlib.suppress(TransportError):  # `_serve` hears of it, too
            worker.connection.send(messages)

    def drop(self, verdict: DropWorker) -> None:
        """End the connection, as the machine has decided."""
        worker = self._accountable.get(verdict.worker_id)
        if worker is None:
            return
        _log.warning("dropped %s: %s", worker.connection.peer, verdict.reason)
        worker.loss_cause, worker.is_at_fault = verdict.cause, verdict.is_at_fault
        self._spawn(worker.connection.drop(verdict.reason) if verdict.is_at_fault else worker.connection.close(verdict.reason))

    def lost(self, worker_id: WorkerId) -> None:
        """Note that the machine has handled the last event of this worker."""
        worker = self._accountable.pop(worker_id)
        cause = worker.loss_cause or LossCause.DISCONNECTED
        self.losses[cause] += 1
        self.quarantines[cause] += worker.is_at_fault
        self.departures.append(Departure(at=self._now(), name=worker.name, cause=cause))
        sent_bytes, received_bytes = worker.connection.traffic
        self._gone = Traffic(self._gone.sent_bytes + sent_bytes, self._gone.received_bytes + received_bytes)

    def measured(self, worker_id: WorkerId, rtt_s: float) -> None:
        """Note a round trip that the machine has measured."""
        if worker_id in self._connected:
            self._connected[worker_id].rtt.add(rtt_s)

    def finished_round(self, finished: RoundFinished) -> None:
        """Count the tokens that a session has committed."""
        worker = self._connected.get(finished.worker_id) if finished.worker_id is not None else None
        if worker is not None:
            worker.committed_tokens += finished.committed
            worker.proposed_tokens += finished.proposed

    async def _serve(self, worker_id: WorkerId, hello: Hello, connection: Connection) -> None:
        unique_name = self._unused_name(hello.worker_name, worker_id)
        worker = ConnectedWorker(worker_id=worker_id, name=hello.worker_name, unique_name=unique_name, connection=connection)
        self._connected[worker_id] = self._accountable[worker_id] = worker
        self._tracer.worker_joined(worker_id, worker.name, now=self._now())
        _log.info("%s has joined", connection.peer)
        joined = WorkerJoined(
            worker_id=worker_id,
            name=worker.name,
            max_sessions=hello.max_sessions,
            labels=hello.labels,
            context_length=hello.context_length,
            identity=connection.identity,
            model_name=hello.model_name,
        )
        self._events.put_nowait(joined)
        await self._notify()
        reason = "the engine was closed"
        try:
            while True:
                for message in await connection.receive():
                    await self._receive(worker, message)
        except WanspecError as error:
            reason = str(error)
            await self._disconnect(worker, error)
        finally:
            del self._connected[worker_id]
            self._events.put_nowait(WorkerLost(worker_id=worker_id))
            self._tracer.worker_lost(worker_id, worker.name, reason, now=self._now())
            _log.info("%s has left: %s", connection.peer, reason)
        await self._notify()

    async def _receive(self, worker: ConnectedWorker, message: Message) -> None:
        event: LinkEvent
        match message:
            case Drafts():
                if self._tracer.is_kept:
                    self._tracer.message_received(worker.worker_id, message, encoded_size(message), now=self._now())
                event = DraftsReceived(worker_id=worker.worker_id, drafts=message)
            case Pong(number=number):
                event = PongReceived(worker_id=worker.worker_id, number=number)
            case _:
                raise RemoteProtocolError(f"an unexpected {type(message).__name__}", worker=worker.name)
        while self._events.qsize() >= MAX_PENDING_EVENTS:  # noqa: ASYNC110  # rare, and the loop turns meanwhile
            await asyncio.sleep(CATCH_UP_S)  # not 0: where the machine is dead, a flood must not spin the loop for ever
        self._events.put_nowait(event)

    async def _disconnect(self, worker: ConnectedWorker, error: WanspecError) -> None:
        """Close a connection that has ended with this error; the machine may still overrule the cause."""
        connection = worker.connection
        match error:
            case RemoteProtocolError(reason=reason):
                _log.warning("dropped %s: %s", connection.peer, reason)
                worker.loss_cause, worker.is_at_fault = LossCause.PROTOCOL, True
                await connection.drop(reason)
            case SlowPeerError():
                _log.warning("%s", error)
                worker.loss_cause, worker.is_at_fault = LossCause.SLOW, True
        await connection.close(str(error))

    def _unused_name(self, name: str, worker_id: WorkerId) -> str:
        taken = {worker.unique_name for worker in self._connected.values()}
        while name in taken:
            name = f"{name}#{worker_id}"
        return name

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
